//! Fuzzes the decoder `text` of `hyperfabric_tests::decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyperfabric_tests::decoders::run("text", bytes));
