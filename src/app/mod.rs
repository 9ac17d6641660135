//! (being built)
pub mod auth;
pub mod envelope;
pub mod permissions;
