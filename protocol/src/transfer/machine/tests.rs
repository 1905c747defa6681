//! The transfer machine, alone and against another one.

use super::*;

#[test]
fn an_error_names_the_fault_and_the_detail() {
    let mut error = TransferError::local(Fault::NoSpace);
    assert_eq!(std::format!("{error}"), "the receiver's disk is full");
    error.detail = Some(Text::truncating("inbox"));
    assert_eq!(std::format!("{error}"), "the receiver's disk is full: inbox");
}
