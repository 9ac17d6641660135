//! What a message costs the server in allocations.
//!
//! ```text
//! cargo bench --bench counts
//! ```

mod calm;
#[path = "../measure/json.rs"]
mod json;
mod scenes;
mod server;

use std::io::{self, Write};

use scenes::SCENES;

fn main() -> io::Result<()> {
    // `cargo bench` adds `--bench`; `cargo test`, which does not, wants to see whether it runs.
    if std::env::args().any(|word| word == "--bench") {
        return allocations();
    }
    SCENES.iter().for_each(|scene| drop(scene.warm(1)));
    Ok(())
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
