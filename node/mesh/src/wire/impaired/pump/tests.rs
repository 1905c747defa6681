//! How due datagrams are put together. What the pump does over a wire is tested at the impaired wire.

use super::*;
use crate::wire::Ecn;

fn datagram(bytes: usize) -> Datagram {
    Datagram {
        destination: "192.0.2.1:4001".parse().unwrap(),
        contents: vec![0; bytes].into(),
        ecn: None,
        src_ip: None,
    }
}

fn sizes(sizes: &[usize]) -> Vec<Datagram> {
    sizes.iter().map(|bytes| datagram(*bytes)).collect()
}

#[test]
fn nothing_due_makes_no_run() {
    assert_eq!(run_length(&[], 10), 0);
}

#[test]
fn datagrams_of_one_size_go_together_up_to_what_the_wire_takes() {
    let due = sizes(&[100; 12]);
    assert_eq!(run_length(&due, 10), 10);
    assert_eq!(run_length(&due[10..], 10), 2);
    assert_eq!(run_length(&due, 1), 1);
}

#[test]
fn a_smaller_datagram_ends_a_run_and_a_larger_one_begins_the_next() {
    assert_eq!(run_length(&sizes(&[100, 100, 60, 60]), 10), 3);
    assert_eq!(run_length(&sizes(&[100, 60, 100]), 10), 2);
    assert_eq!(run_length(&sizes(&[60, 100]), 10), 1);
}

#[test]
fn an_empty_datagram_goes_by_itself() {
    assert_eq!(run_length(&sizes(&[100, 0]), 10), 1);
    assert_eq!(run_length(&sizes(&[0, 0]), 10), 1);
}

#[test]
fn a_run_is_no_longer_than_a_datagram_can_be() {
    let due = sizes(&[20_000; 5]);
    assert_eq!(run_length(&due, 64), 3);
    let due = sizes(&[DATAGRAM_BYTES_MAX, 1]);
    assert_eq!(run_length(&due, 64), 1);
}

#[test]
fn what_goes_elsewhere_is_marked_otherwise_or_leaves_from_elsewhere_goes_apart() {
    let elsewhere = Datagram {
        destination: "192.0.2.2:4001".parse().unwrap(),
        ..datagram(100)
    };
    let marked = Datagram {
        ecn: Some(Ecn::Ect0),
        ..datagram(100)
    };
    let from_elsewhere = Datagram {
        src_ip: Some("192.0.2.9".parse().unwrap()),
        ..datagram(100)
    };
    for other in [elsewhere, marked, from_elsewhere] {
        let due = [datagram(100), datagram(100), other.clone(), other];
        assert_eq!(run_length(&due, 10), 2);
        assert_eq!(run_length(&due[2..], 10), 2);
    }
}
