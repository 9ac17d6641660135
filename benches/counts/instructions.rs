//! Instructions, counted by valgrind, which gives every machine the same processor, and compared with those of before.
//! Law: what is counted is what runs inside [`counted`] and nothing else; a comparison that cannot be made says so.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde::{Deserialize, Serialize};

use crate::scenes::{SCENES, Scene};

/// What was counted before.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    architecture: String,
    rustc: String,
    valgrind: String,
    /// By scene, for one unit of it.
    instructions: BTreeMap<String, f64>,
}

/// How much more than in the baseline is no finding, in percent. Runs on one machine do not differ by an instruction. Another C
/// library allocates and copies in other ways, and another C compiler makes another aws-lc: of a token that is checked, 4 % were
/// such copies, which is why [`SAME_COPIES`] are asked for.
const TOLERANCE: f64 = 5.0;
/// The same for another compiler than the baseline's: they inline differently. What this finds is still a regression of the
/// kind that users notice.
const TOLERANCE_OTHER_COMPILER: f64 = 15.0;
/// So many instructions more are no finding however few there were.
const SLACK: f64 = 24.0;
/// Which copies the C library makes: those that every processor has. By itself it looks at the processor, and where that is fast
/// at copying or clearing byte by byte, each byte would be counted: three times as many instructions for 16 KiB there and back,
/// twice as many to compress 1 KiB. Names that a version of it does not know it passes over.
const SAME_COPIES: &str = "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS:\
    glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000";
/// Rounds before, in which memory is taken that is kept.
const WARM_UP: u32 = 24;
/// Rounds that are counted.
const ROUNDS: u32 = 16;

/// Counts every scene and compares, or makes the baseline anew. Whether all is well.
pub fn check(renew: bool) -> io::Result<bool> {
    if cfg!(debug_assertions) {
        return Err(io::Error::other("what is counted is a release build: cargo bench --bench counts"));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts/baseline.json");
    let now = count()?;
    let mut out = io::stdout().lock();
    if renew {
        let text = serde_json::to_string_pretty(&now).map_err(io::Error::other)?;
        fs::write(&file, text + "\n")?;
        writeln!(out, "\n{} is new", file.display())?;
        return Ok(true);
    }
    let text = fs::read_to_string(&file).map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
    let before: Baseline = serde_json::from_str(&text).map_err(io::Error::other)?;
    if before.architecture != now.architecture {
        let (then, here) = (&before.architecture, &now.architecture);
        writeln!(out, "\ncounts: not compared: the baseline is of {then}, and this is {here}")?;
        return Ok(true);
    }
    let mut tolerance = TOLERANCE;
    if before.rustc != now.rustc {
        tolerance = TOLERANCE_OTHER_COMPILER;
        let (then, here) = (&before.rustc, &now.rustc);
        writeln!(
            out,
            "\ncounts: another compiler than the baseline's, so {tolerance} % more are no finding: {then}; {here}"
        )?;
    }
    if before.valgrind != now.valgrind {
        writeln!(out, "\ncounts: another valgrind than the baseline's: {}; {}", before.valgrind, now.valgrind)?;
    }
    let mut is_well = true;
    for finding in findings(&before.instructions, &now.instructions, tolerance) {
        writeln!(out, "\ncounts: {finding}")?;
        is_well = false;
    }
    for (name, now, then) in compared(&before.instructions, &now.instructions) {
        if now < then * (1.0 - tolerance / 100.0) - SLACK {
            writeln!(out, "\ncounts: fewer: {name}: {now:.0} instructions, {then:.0} before; {RENEW}")?;
        }
    }
    Ok(is_well)
}

/// What is worse than before, or cannot be compared.
fn findings(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>, tolerance: f64) -> Vec<String> {
    let mut found = Vec::new();
    for (name, now, then) in compared(before, now) {
        if now > then * (1.0 + tolerance / 100.0) + SLACK {
            let more = (now / then - 1.0) * 100.0;
            found.push(format!(
                "{name}: {now:.0} instructions, {then:.0} before: {more:.1} % more, where {tolerance} % are no finding; \
                 if that is what it takes: {RENEW}"
            ));
        }
    }
    let missing = |one: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>| -> Vec<String> {
        one.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
    };
    found.extend(missing(now, before).into_iter().map(|name| format!("{name}: not in the baseline; {RENEW}")));
    found.extend(missing(before, now).into_iter().map(|name| format!("{name}: only in the baseline; {RENEW}")));
    found
}

fn compared<'a>(
    before: &'a BTreeMap<String, f64>,
    now: &'a BTreeMap<String, f64>,
) -> impl Iterator<Item = (&'a str, f64, f64)> {
    now.iter().filter_map(|(name, &now)| before.get(name).map(|&then| (name.as_str(), now, then)))
}

fn count() -> io::Result<Baseline> {
    let valgrind = said(Command::new("valgrind").arg("--version"))?;
    let rustc = said(Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version"))?;
    let mut instructions = BTreeMap::new();
    let mut out = io::stdout().lock();
    writeln!(out, "| scene | of one | instructions |\n|---|---|--:|")?;
    for scene in SCENES {
        let counted = count_one(scene)?;
        writeln!(out, "| {} | {} | {counted:.0} |", scene.name, scene.of.0)?;
        out.flush()?;
        instructions.insert(scene.name.to_owned(), counted);
    }
    Ok(Baseline { architecture: env::consts::ARCH.into(), rustc, valgrind, instructions })
}

/// Instructions of one unit.
fn count_one(scene: &Scene) -> io::Result<f64> {
    let directory = tempfile::tempdir()?;
    let written = directory.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=*instructions*counted*"]);
    command.arg(format!("--callgrind-out-file={}", written.display()));
    command.arg(env::current_exe()?).args(["play", scene.name]);
    command.env("GLIBC_TUNABLES", SAME_COPIES);
    let run = command.output()?;
    if !run.status.success() {
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        return Err(io::Error::other(format!("{}: {}: {text}", scene.name, run.status)));
    }
    let text = fs::read_to_string(&written)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    match total {
        None | Some(0) => Err(io::Error::other(format!("{}: valgrind has not found what it is to count", scene.name))),
        Some(total) => Ok(total as f64 / f64::from(ROUNDS) / scene.of.1 as f64),
    }
}

/// The other end of [`count_one`]: plays a scene for valgrind.
pub fn play(scene: &Scene) {
    let mut round = scene.warm(WARM_UP);
    for _ in 0..ROUNDS {
        round(&mut |work| counted(work));
    }
}

/// Valgrind counts what is called from here.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

/// The first line of what a program says.
fn said(command: &mut Command) -> io::Result<String> {
    let output = command.output().map_err(|error| io::Error::other(format!("{:?}: {error}", command.get_program())))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

const RENEW: &str = "`cargo bench --bench counts -- renew` makes the baseline anew";
