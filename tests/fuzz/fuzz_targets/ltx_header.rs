#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| walferry_fuzz::targets::ltx_header(bytes));
