//! Tickets survive copying and say when they do not.

use std::string::{String, ToString};

use proptest::prelude::*;

use super::*;
use crate::SigningKey;
use crate::cert::{Admitter, CERTIFICATE_VALIDITY};

fn ticket() -> Ticket {
    Ticket(TicketBody {
        authority: PeerId([1; 32]),
        mesh_name: Text(String::from("lab")),
        issuer: PeerId([2; 32]),
        addresses: List(std::vec![
            Address::new("/ip4/127.0.0.1/udp/4001/quic-v1").unwrap()
        ]),
        secret: [3; 16],
        name: NodeId::new("gpu-1").unwrap(),
        expires: UnixMillis(5),
    })
}

#[test]
fn a_ticket_reads_back_from_its_text_with_spaces_around_it() {
    let text = ticket().to_string();
    assert!(text.starts_with(TICKET_PREFIX));
    assert_eq!(std::format!("  {text}\n").parse(), Ok(ticket()));
}

#[test]
fn a_mistyped_ticket_is_told_from_a_foreign_text() {
    let mut text = ticket().to_string();
    assert_eq!(
        "hello".parse::<Ticket>(),
        Err(TicketError::NotATicket(TICKET_PREFIX))
    );
    text.truncate(text.len() - 2);
    assert_eq!(text.parse::<Ticket>(), Err(TicketError::Damaged));
    assert_eq!(TICKET_PREFIX.parse::<Ticket>(), Err(TicketError::Damaged));
}

#[test]
fn a_ticket_keeps_its_secret_out_of_debug_output() {
    assert_eq!(std::format!("{:?}", ticket().secret()), "TicketSecret");
}

#[test]
fn a_credential_reads_back_from_its_text() {
    let key = SigningKey::from_bytes(&[1; 32]);
    let root = MeshRoot::Closed {
        authority: key.peer_id(),
        name: String::from("lab"),
    };
    let admitter = Admitter {
        key: key.clone(),
        delegation: None,
    };
    let name = NodeId::new("a").unwrap();
    let membership = admitter.admit(
        &root,
        PeerId([9; 32]),
        name,
        crate::Serial([0; 16]),
        UnixMillis(0),
        CERTIFICATE_VALIDITY,
    );
    let credential = Credential::new(&root, membership, None);
    let text = credential.to_string();
    assert_eq!(text.parse(), Ok(credential.clone()));
    assert_eq!(credential.root(), root);
}

proptest! {
    #[test]
    fn reading_any_text_as_a_ticket_never_panics(text in ".{0,300}") {
        let _read = std::format!("{TICKET_PREFIX}{text}").parse::<Ticket>();
        let _read = text.parse::<Ticket>();
    }

    #[test]
    fn a_changed_character_never_yields_another_ticket(at in 5usize..180, to in "[A-Za-z0-9_-]") {
        let text = ticket().to_string();
        let at = at.min(text.len() - 1);
        let mut changed = text.clone();
        changed.replace_range(at..=at, &to);
        if changed != text {
            prop_assert_ne!(changed.parse::<Ticket>(), Ok(ticket()));
        }
    }
}
