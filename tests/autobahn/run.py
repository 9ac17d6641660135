"""Runs the Autobahn test suite against a server and judges every case: none may fail, none be merely non-strict.

    run.py ws://127.0.0.1:9001/echo OUT [--table FILE] [--long]

The suite is Python 2 code. A Python 2.7 is looked for in $PYTHON2, on the PATH and under ~/.pyenv; with it the suite is
installed into tests/.autobahn once. Exit: 0 all well, 1 a case is not, 3 there is no Python 2.7 on this machine.
"""

import argparse
import collections
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

SUITE = ["autobahntestsuite==25.10.1", "wsaccel==0.6.2"]
VIRTUALENV = "virtualenv==20.15.1"  # the last that makes environments of Python 2
# Framing, UTF-8, fragments, closing, messages of up to 16 MiB.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
# Compression: every kind of payload and every offer, in a short and in a longer size; all sizes with --long.
KINDS = [f"12.{kind}" for kind in range(1, 6)] + [f"13.{kind}" for kind in range(1, 8)]
COMPRESSION = [f"{kind}.{size}" for kind in KINDS for size in (3, 6)]
COMPRESSION_LONG = ["12.*", "13.*"]
GOOD = {"OK", "INFORMATIONAL"}
PROCESSES = 2
SECONDS_MAX = 1500  # of each process; --long has three times that


def python2():
    """The path of a Python 2.7, or None."""
    candidates = [os.environ.get("PYTHON2"), shutil.which("python2.7"), "/usr/bin/python2.7"]
    candidates += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/2.7*/bin/python2.7")))
    for candidate in filter(None, candidates):
        probe = [candidate, "-c", "import sys; assert sys.version_info[:2] == (2, 7)"]
        if os.path.exists(candidate) and subprocess.run(probe, capture_output=True).returncode == 0:
            return candidate
    return None


def install(python, home):
    """Makes an environment with the suite in `home`, whole or not at all."""
    with tempfile.TemporaryDirectory() as boot:
        pip = ["-W", "ignore", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([python, *pip, "--target", boot, VIRTUALENV], check=True)
        env = {**os.environ, "PYTHONPATH": boot, "PYTHONWARNINGS": "ignore"}
        subprocess.run([python, "-m", "virtualenv", "-q", home], check=True, env=env)
    try:
        subprocess.run([f"{home}/bin/pip", "install", "-q", "--disable-pip-version-check", *SUITE], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(home)
        raise


def wanted(home, patterns):
    """The ids of the cases that match, as the suite itself reads the patterns."""
    code = """if True:
        import json, sys
        from autobahntestsuite.caseset import CaseSet
        from autobahntestsuite.case import Cases, CaseCategories, CaseSubCategories
        cases = CaseSet("Case", "Case", Cases, CaseCategories, CaseSubCategories)
        spec = {"cases": json.loads(sys.argv[1]), "exclude-cases": []}
        print(json.dumps([case for case in cases.parseSpecCases(spec) if case in cases.CasesById]))
    """
    run = subprocess.run([f"{home}/bin/python", "-c", code, json.dumps(patterns)], check=True, capture_output=True)
    return json.loads(run.stdout)


def attack(home, url, cases, out, seconds_max):
    """Runs the cases over some processes; what each of them said is in `out`."""
    running = []
    for part in range(PROCESSES):
        spec = {
            "outdir": f"{out}/report{part}",
            "servers": [{"agent": "tidewheel", "url": url}],
            "cases": cases[part::PROCESSES],
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        with open(f"{out}/spec{part}.json", "w") as file:
            json.dump(spec, file)
        log = open(f"{out}/wstest{part}.log", "w")
        command = [f"{home}/bin/wstest", "-m", "fuzzingclient", "-s", f"{out}/spec{part}.json"]
        running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=out))
    for process in running:
        try:
            process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            process.kill()


def verdicts(out):
    """What the suite found for each case: its behaviour, and how it closed."""
    found = {}
    for index in glob.glob(f"{out}/report*/index.json"):
        with open(index) as file:
            for cases in json.load(file).values():
                found.update({case: (v["behavior"], v["behaviorClose"]) for case, v in cases.items()})
    return found


def table(found):
    """The result as a Markdown table, a row for each group of cases."""
    groups = collections.defaultdict(collections.Counter)
    for case, (behaviour, _) in found.items():
        groups[int(case.split(".")[0])][behaviour] += 1
    rows = [f"| {group}.* | {sum(n.values())} | {n['OK']} | {n['INFORMATIONAL']} |" for group, n in sorted(groups.items())]
    return "\n".join(["| cases | run | OK | informational |", "|---|---|---|---|", *rows]) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("out")
    parser.add_argument("--table", help="write the result as Markdown")
    parser.add_argument("--long", action="store_true", help="compression in all sizes, which takes many minutes")
    args = parser.parse_args()

    home = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".autobahn")
    if not os.path.exists(f"{home}/bin/wstest"):
        python = python2()
        if not python:
            print("autobahn: NOT RUN: no Python 2.7 here, which the suite is written in; set PYTHON2 to one")
            return 3
        install(python, home)
    out = os.path.abspath(args.out)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    cases = wanted(home, CASES + (COMPRESSION_LONG if args.long else COMPRESSION))
    attack(home, args.url, cases, out, SECONDS_MAX * (3 if args.long else 1))

    found = verdicts(out)
    bad = [f"{case}: {how}" for case, how in sorted(found.items()) if how[0] not in GOOD or how[1] not in GOOD]
    bad += [f"{case}: no verdict" for case in cases if case not in found]
    for line in bad:
        print("autobahn:", line)
    counts = collections.Counter(behaviour for behaviour, _ in found.values())
    print(f"autobahn: {len(found)} of {len(cases)} cases:", ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    if args.table and not bad:
        with open(args.table, "w") as file:
            file.write(table(found))
    return 1 if bad or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
