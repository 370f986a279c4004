//! libFuzzer program of [`switchboard_fuzz::store_reader`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| switchboard_fuzz::store_reader(data));
