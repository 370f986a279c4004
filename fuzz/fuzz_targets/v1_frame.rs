//! libFuzzer program of [`switchboard_fuzz::v1_frame`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| switchboard_fuzz::v1_frame(data));
