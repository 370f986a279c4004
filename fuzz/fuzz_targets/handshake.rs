//! libFuzzer program of [`switchboard_fuzz::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| switchboard_fuzz::handshake(data));
