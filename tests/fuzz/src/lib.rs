//! What is fuzzed, as functions of bytes: libFuzzer calls them (`tests/fuzz/run`), and `cargo test --test fuzz_seeds`
//! tries every committed seed on them, past findings included, and some random bytes.
//! Law: a target panics if, and only if, a promise is broken; it reads no file, no clock and no environment.

pub mod certificate;
pub mod config;
pub mod deflate;
pub mod envelope;
pub mod forwarded;
pub mod frames;
#[path = "../../simulation/handlers.rs"]
mod handlers;
pub mod history;
pub mod outbound;
pub mod preamble;
pub mod request;
mod script;
#[allow(dead_code, reason = "the simulation needs more of it")]
#[path = "../../simulation/secure.rs"]
mod secure;
pub mod shard;
#[allow(dead_code, reason = "the simulation needs more of it")]
#[path = "../../simulation/stage.rs"]
mod stage;
pub mod tls;
pub mod token;
pub mod topics;
#[allow(dead_code, reason = "the simulation needs more of it")]
#[path = "../../simulation/wire.rs"]
mod wire;

/// A target: its name, which is that of its seeds' directory, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("certificate", certificate::try_bytes),
    ("config", config::try_bytes),
    ("deflate", deflate::try_bytes),
    ("envelope", envelope::try_bytes),
    ("forwarded", forwarded::try_bytes),
    ("frames", frames::try_bytes),
    ("history", history::try_bytes),
    ("outbound", outbound::try_bytes),
    ("preamble", preamble::try_bytes),
    ("request", request::try_bytes),
    ("shard", shard::try_bytes),
    ("tls", tls::try_bytes),
    ("token", token::try_bytes),
    ("topics", topics::try_bytes),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};

    use tidewheel::io::sim::Dice;

    use super::*;

    /// The place of this crate, from whichever crate it is a test of.
    pub fn home() -> PathBuf {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        if manifest.join("targets").is_dir() { manifest.into() } else { manifest.join("tests/fuzz") }
    }

    /// Every file of a directory, by name.
    pub fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_seed_passes() {
        for (name, target) in TARGETS {
            let seeds = files(&home().join("seeds").join(name));
            assert!(!seeds.is_empty(), "{name} has no seeds");
            for seed in seeds {
                let bytes = fs::read(&seed).unwrap();
                let tried = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
                assert!(tried.is_ok(), "{} fails", seed.display());
            }
        }
    }

    #[test]
    fn random_bytes_and_damaged_seeds_pass() {
        for (name, target) in TARGETS {
            let seeds: Vec<_> =
                files(&home().join("seeds").join(name)).iter().map(|seed| fs::read(seed).unwrap()).collect();
            let times = if matches!(*name, "shard" | "tls") { 50 } else { 500 };
            for number in 0..times {
                let mut dice = Dice::new(number);
                let mut bytes: Vec<u8> = if dice.coin() {
                    (0..dice.below(600)).map(|_| dice.bits() as u8).collect()
                } else {
                    seeds[dice.below(seeds.len())].clone()
                };
                for _ in 0..dice.below(4).min(bytes.len()) {
                    let at = dice.below(bytes.len());
                    bytes[at] = dice.bits() as u8;
                }
                let tried = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
                assert!(tried.is_ok(), "{name} fails on damage {number}: {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_here_is_what_is_built() {
        let built: BTreeSet<_> = files(&home().join("targets")).iter().map(|file| stem(file)).collect();
        let seeded: BTreeSet<_> = files(&home().join("seeds")).iter().map(|file| stem(file)).collect();
        let listed: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!((&built, &seeded), (&listed, &listed));
        let manifest = fs::read_to_string(home().join("Cargo.toml")).unwrap();
        for name in listed {
            let program = fs::read_to_string(home().join(format!("targets/{name}.rs"))).unwrap();
            assert!(program.contains(&format!("tidewheel_fuzz::{name}::try_bytes")), "{name} calls another");
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is not built");
        }
    }

    fn stem(file: &Path) -> String {
        file.file_stem().unwrap().to_str().unwrap().to_owned()
    }
}
