//! The connection machine, alone and against another one.

use super::*;

#[test]
fn every_close_reason_has_the_code_of_its_place() {
    for (code, reason) in CloseReason::ALL.into_iter().enumerate() {
        assert_eq!(reason.code() as usize, code);
        assert_eq!(CloseReason::from_code(code as u64), Some(reason));
    }
    assert_eq!(CloseReason::from_code(CloseReason::ALL.len() as u64), None);
}
