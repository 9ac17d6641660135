//! The maintainer's and the client author's handbook.

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("operate.md")]
pub mod operate {}

#[doc = include_str!("host.md")]
pub mod host {}

#[doc = include_str!("memory.md")]
pub mod memory {}

#[doc = include_str!("bench.md")]
pub mod bench {}

#[doc = include_str!("drain.md")]
pub mod drain {}

#[doc = include_str!("keys.md")]
pub mod keys {}

#[doc = include_str!("tls.md")]
pub mod tls {}

#[doc = include_str!("reload.md")]
pub mod reload {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("threats.md")]
pub mod threats {}

#[doc = include_str!("sessions.md")]
pub mod sessions {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("fuzzing.md")]
pub mod fuzzing {}

#[doc = include_str!("conformance.md")]
pub mod conformance {}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub mod readme {}
