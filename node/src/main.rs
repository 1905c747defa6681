//! The `hyperfabric` command.

fn main() {}
