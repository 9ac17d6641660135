//! What a message costs the server in allocations and in instructions, whatever else the machine does meanwhile.
//!
//! ```text
//! cargo bench --bench counts                    # both tables, and instructions compared with the baseline
//! cargo bench --bench counts -- allocations
//! cargo bench --bench counts -- instructions    # needs valgrind
//! cargo bench --bench counts -- renew           # makes the baseline of instructions anew
//! ```

mod calm;
mod instructions;
#[path = "../measure/json.rs"]
mod json;
mod scenes;
mod server;

use std::io::{self, Write};
use std::process::ExitCode;

use scenes::SCENES;

fn main() -> io::Result<ExitCode> {
    // `cargo bench` adds `--bench`; `cargo test`, which does not, wants to see whether it runs.
    let (options, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_well = match *words {
        [] if !options.iter().any(|option| option == "--bench") => {
            SCENES.iter().for_each(|scene| drop(scene.warm(1)));
            true
        }
        [] => allocations().and_then(|()| instructions::check(false))?,
        ["allocations"] => allocations().map(|()| true)?,
        ["instructions"] => instructions::check(false)?,
        ["renew"] => instructions::check(true)?,
        ["play", name] => {
            let scene = SCENES.iter().find(|scene| scene.name == name);
            instructions::play(scene.ok_or_else(|| io::Error::other(format!("no scene `{name}`")))?);
            true
        }
        _ => return Err(io::Error::other("allocations, instructions or renew")),
    };
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the shard allocates in rounds in which nothing is new.
fn allocations() -> io::Result<()> {
    const ROUNDS: u32 = 128;
    /// Until also what a connection keeps for a total of more than 64 KiB is there.
    const WARM_UP: u32 = 256;
    let mut out = io::stdout().lock();
    writeln!(out, "| scene | of one | allocations | bytes |\n|---|---|--:|--:|")?;
    for scene in SCENES {
        let mut round = scene.warm(WARM_UP);
        let (mut count, mut bytes) = (0, 0);
        for _ in 0..ROUNDS {
            round(&mut |work| {
                let counted = allocation_counter::measure(work);
                (count, bytes) = (count + counted.count_total, bytes + counted.bytes_total);
            });
        }
        let each = |total: u64| total as f64 / f64::from(ROUNDS) / scene.of.1 as f64;
        writeln!(out, "| {} | {} | {:.2} | {:.0} |", scene.name, scene.of.0, each(count), each(bytes))?;
    }
    writeln!(out)
}
