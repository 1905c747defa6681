//! The transfer benchmark.
#![forbid(unsafe_code)]

fn main() {}
