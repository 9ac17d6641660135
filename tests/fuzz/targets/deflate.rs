//! One entry of `tidewheel_fuzz::TARGETS` for libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidewheel_fuzz::deflate::try_bytes(bytes));
