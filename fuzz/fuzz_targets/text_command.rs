//! libFuzzer program of [`switchboard_fuzz::text_command`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| switchboard_fuzz::text_command(data));
