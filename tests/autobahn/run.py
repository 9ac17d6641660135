"""Runs the Autobahn test suite against a server and judges every case: none may fail, none be merely non-strict.

    run.py ws://127.0.0.1:9001/echo OUT [--long | --sample] [--page FILE] [--against FILE] [--again]

--sample runs a few cases of every chapter: for a wss address, where what is below the frames is another and they are the same.
--page writes the verdicts as a page of the handbook; --against holds a run, of all cases or of some, to such a page. The suite is
Python 2 code. A Python 2.7 is looked for in $PYTHON2, on the PATH and under ~/.pyenv; with it the suite is installed into
tests/.autobahn once. Exit: 0 all well, 1 a case is not, 3 there is no Python 2.7 on this machine.
"""

import argparse
import collections
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

SUITE = ["autobahntestsuite==25.10.1", "wsaccel==0.6.2"]
VIRTUALENV = "virtualenv==20.15.1"  # the last that makes environments of Python 2
# Framing, UTF-8, fragments, closing, messages of up to 16 MiB.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
# Compression: every kind of payload and every offer, in a short and in a longer size; all sizes with --long.
KINDS = [f"12.{kind}" for kind in range(1, 6)] + [f"13.{kind}" for kind in range(1, 8)]
COMPRESSION = [f"{kind}.{size}" for kind in KINDS for size in (3, 6)]
COMPRESSION_LONG = ["12.*", "13.*"]
SAMPLE = ["1.*", "2.*", "5.*", "6.1.*", "6.4.*", "7.1.*", "7.3.*", "9.1.*", "9.5.*", "10.*", "12.1.3", "12.3.6", "13.3.3"]
GOOD = {"OK", "INFORMATIONAL"}
CHAPTERS = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "reserved opcodes",
    5: "fragments",
    6: "UTF-8",
    7: "closing",
    9: "limits: messages and fragments up to 16 MiB",
    10: "fragments of the peer's library",
    12: "compression: payloads of every kind, 16 bytes to 128 KiB",
    13: "compression: offers of every kind",
}
INFORMATIONAL = {
    "7.1.6": "two messages (256 KiB and 12 bytes), a close frame and a ping are sent back to back; what is returned is the server's to decide",
    "7.13.1": "close code 5000, of which the RFC says nothing",
    "7.13.2": "close code 65535, of which the RFC says nothing",
}
PROCESSES = 2
SECONDS_MAX = 1500  # of each process; --long has four times that


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
    """What the suite found for each case."""
    found = {}
    for index in glob.glob(f"{out}/report*/index.json"):
        with open(index) as file:
            for cases in json.load(file).values():
                for case, verdict in cases.items():
                    found[case] = {**verdict, "report": os.path.join(os.path.dirname(index), verdict["reportfile"])}
    return found


def is_good(verdict):
    return verdict["behavior"] in GOOD and verdict["behaviorClose"] in GOOD


def in_order(cases):
    return sorted(cases, key=lambda case: [int(part) for part in case.split(".")])


def by_chapter(found):
    """How many cases of each chapter had which verdict."""
    chapters = collections.defaultdict(collections.Counter)
    for case, verdict in found.items():
        chapters[int(case.split(".")[0])][verdict["behavior"]] += 1
    return chapters


def row(chapter, counts):
    return f"| {chapter}.* | {CHAPTERS[chapter]} | {sum(counts.values())} | {counts['OK']} | {counts['INFORMATIONAL']} |"


def happened(verdict):
    """What the server did in a case that cannot be passed or failed."""
    with open(verdict["report"]) as file:
        frames = json.load(file)["rxFrameStats"]
    messages = frames.get("1", 0) + frames.get("2", 0)
    came = {0: "no message", 1: "one message"}.get(messages, f"{messages} messages")
    return f"{came} came back, then a close frame with {verdict['remoteCloseCode']}"


def page(found, seconds, versions):
    """The verdicts as a page of the handbook."""
    chapters = by_chapter(found)
    informational = in_order(case for case in found if found[case]["behavior"] == "INFORMATIONAL")
    lines = [
        "# The Autobahn suite",
        "",
        "The test suite that WebSocket implementations are commonly measured with, run against `echo_path`. Made by",
        "",
        "```text",
        "tests/run conformance long",
        "```",
        "",
        f"{versions}, over `ws`, against the debug build, every case of the suite for servers. It took {round(seconds / 60)} minutes in",
        f"{PROCESSES} processes, most of them the suite's own work. None failed, none is non-strict, none is left out. `tests/run` runs chapters 1 to 10 and",
        "two sizes of each kind of compression every time, and fails where a verdict is not the one on this page.",
        "",
        "| cases | about | run | OK | informational |",
        "|---|---|--:|--:|--:|",
        *(row(chapter, chapters[chapter]) for chapter in sorted(chapters)),
        f"| all | | {len(found)} | {len(found) - len(informational)} | {len(informational)} |",
        "",
        "Informational are the cases that the suite neither passes nor fails, whatever a server does:",
        "",
        "| case | why it is no verdict | what happened |",
        "|---|---|---|",
        *(f"| {case} | {INFORMATIONAL[case]} | {happened(found[case])} |" for case in informational),
    ]
    return "\n".join(lines) + "\n"


def differences(found, is_whole, text):
    """Where a run of all cases, or of those that are run every time, differs from what the page says of them."""
    rows = {int(chapter): line for line in text.splitlines() for chapter in re.findall(r"^\| (\d+)\.\* \|", line)}
    named = set(re.findall(r"^\| (\d+\.[\d.]+) \|", text, re.M))
    for case in in_order(found):
        if int(case.split(".")[0]) not in rows:
            yield f"{case}: its chapter is not on the page"
        elif (found[case]["behavior"] == "INFORMATIONAL") != (case in named):
            yield f"{case}: {found[case]['behavior']}, and the page says otherwise"
    yield from (f"{case}: on the page, and it was not run" for case in in_order(named - set(found)))
    for chapter, counts in by_chapter(found).items():
        if (is_whole or f"{chapter}.*" in CASES) and chapter in rows and row(chapter, counts) != rows[chapter]:
            yield f"chapter {chapter}: {dict(counts)}, and the page says {rows[chapter]}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("out")
    parser.add_argument("--long", action="store_true", help="compression in all sizes, which takes many minutes")
    parser.add_argument("--sample", action="store_true", help="a few cases of every chapter")
    parser.add_argument("--page", help="write the verdicts as a page, of a run with --long")
    parser.add_argument("--against", help="a page that the verdicts must be those of")
    parser.add_argument("--again", action="store_true", help="judge what lies in OUT, without a new run")
    args = parser.parse_args()

    home = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ".autobahn")
    if not os.path.exists(f"{home}/bin/wstest"):
        python = python2()
        if not python:
            print("autobahn: NOT RUN: no Python 2.7 here, which the suite is written in; set PYTHON2 to one")
            return 3
        install(python, home)
    out = os.path.abspath(args.out)
    patterns = SAMPLE if args.sample else CASES + (COMPRESSION_LONG if args.long else COMPRESSION)
    cases = wanted(home, patterns)
    if not args.again:
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        begin = time.monotonic()
        attack(home, args.url, cases, out, SECONDS_MAX * (4 if args.long else 1))
        with open(f"{out}/seconds", "w") as file:
            print(round(time.monotonic() - begin), file=file)

    found = verdicts(out)
    bad = [f"{case}: {found[case]['behavior']}, {found[case]['behaviorClose']}" for case in in_order(found) if not is_good(found[case])]
    bad += [f"{case}: no verdict" for case in cases if case not in found]
    if args.against and not bad:
        with open(args.against) as file:
            bad += differences(found, args.long, file.read())
    for line in bad:
        print("autobahn:", line)
    counts = collections.Counter(verdict["behavior"] for verdict in found.values())
    print(f"autobahn: {len(found)} of {len(cases)} cases:", ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    if args.page and args.long and not bad:
        with open(f"{out}/seconds") as file:
            seconds = int(file.read())
        with open(args.page, "w") as file:
            file.write(page(found, seconds, " and ".join(name.replace("==", " ") for name in SUITE)))
    return 1 if bad or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
