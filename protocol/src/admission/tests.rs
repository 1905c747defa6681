//! Tickets, grants and revocations: what is not on disk has not happened.

use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::cert::{CLOCK_SKEW_MAX, DELEGATION_VALIDITY, Delegation};

const NOW: Now = Now {
    mono: Instant(0),
    wall: UnixMillis(1_800_000_000_000),
};
const HOUR: Duration = Duration::from_secs(3600);
const CONN: ConnId = ConnId(1);

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn admitter() -> Admission {
    let root = MeshRoot::Closed {
        authority: key(1).peer_id(),
        name: String::from("lab"),
    };
    let delegation = Delegation::issue(&key(1), "lab", key(2).peer_id(), NOW.wall, DELEGATION_VALIDITY);
    let admitter = Admitter {
        key: key(2),
        delegation: Some(delegation),
    };
    Admission::new(
        key(2),
        Some(root),
        None,
        Some(admitter),
        vec![],
        vec![],
        Random::from_seed([2; 32]),
    )
}

fn joiner(n: u8) -> Admission {
    Admission::new(
        key(n),
        None,
        None,
        None,
        vec![],
        vec![],
        Random::from_seed([n; 32]),
    )
}

fn settle(machine: &mut Admission, ok: bool) -> Vec<StateChange> {
    let mut changes = vec![];
    while let Some(job) = machine.poll_job() {
        changes.extend(job.changes);
        machine.handle_persisted(job.id, ok);
    }
    changes
}

fn ticket(admitter: &mut Admission, uses: u32) -> Ticket {
    let (ticket, _) = admitter.invite(NOW, id("gpu"), HOUR, uses, vec![], None).unwrap();
    settle(admitter, true);
    ticket
}

fn redeem(
    admitter: &mut Admission,
    peer: u8,
    ticket: &Ticket,
    now: Now,
    disk: bool,
) -> Result<Member, JoinRefusal> {
    let mut joiner = joiner(peer);
    joiner.join(ticket.clone());
    joiner.handle_join_connection(CONN, key(2).peer_id(), true);
    let Some((_, Frame::JoinRequest(request))) = joiner.poll_transmit() else {
        panic!("no request")
    };
    admitter.handle_join_request(now, CONN, key(peer).peer_id(), &request, None);
    settle(admitter, disk);
    let Some((_, Frame::JoinReply(reply))) = admitter.poll_transmit() else {
        panic!("no reply")
    };
    joiner.handle_join_reply(now, key(2).peer_id(), reply);
    settle(&mut joiner, true);
    match core::iter::from_fn(|| joiner.poll_event()).find(|e| !matches!(e, Event::Persisted { .. })) {
        Some(Event::Joined(member)) => Ok(member),
        Some(Event::Refused(refusal)) => Err(refusal),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_ticket_makes_its_bearer_a_member_under_the_tickets_name() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let member = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    assert_eq!(member.name, id("gpu"));
    assert_eq!(member.peer, key(3).peer_id());
}

#[test]
fn a_used_ticket_is_refused_to_others_and_answered_again_to_its_bearer() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let first = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    assert_eq!(
        redeem(&mut admitter, 4, &ticket, NOW, true),
        Err(JoinRefusal::Used)
    );
    let again = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    assert_eq!(
        again.serial, first.serial,
        "a lost answer must not cost a second certificate"
    );
}

#[test]
fn a_ticket_of_three_uses_grants_three_different_names() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 3);
    let names: Vec<NodeId> = (3..6)
        .map(|n| redeem(&mut admitter, n, &ticket, NOW, true).unwrap().name)
        .collect();
    assert_eq!(names, [id("gpu"), id("gpu-2"), id("gpu-3")]);
    assert_eq!(
        redeem(&mut admitter, 6, &ticket, NOW, true),
        Err(JoinRefusal::Used)
    );
}

#[test]
fn forged_expired_and_renamed_tickets_are_refused_by_name() {
    let mut admitter = admitter();
    let good = ticket(&mut admitter, 1);
    let mut forged = good.clone();
    forged.0.secret = [0; 16];
    assert_eq!(
        redeem(&mut admitter, 3, &forged, NOW, true),
        Err(JoinRefusal::UnknownTicket)
    );
    let mut renamed = good.clone();
    renamed.0.name = id("storage");
    assert_eq!(
        redeem(&mut admitter, 3, &renamed, NOW, true),
        Err(JoinRefusal::OtherName)
    );
    let later = Now {
        mono: NOW.mono,
        wall: NOW.wall.after(HOUR * 2),
    };
    assert_eq!(
        redeem(&mut admitter, 3, &good, later, true),
        Err(JoinRefusal::Expired)
    );
}

#[test]
fn a_use_that_could_not_be_written_has_not_happened() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    assert_eq!(
        redeem(&mut admitter, 3, &ticket, NOW, false),
        Err(JoinRefusal::Storage)
    );
    assert!(
        redeem(&mut admitter, 4, &ticket, NOW, true).is_ok(),
        "the ticket must still be unused"
    );
}

#[test]
fn a_repeated_request_that_cannot_be_written_does_not_give_the_use_back() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let first = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    assert_eq!(
        redeem(&mut admitter, 3, &ticket, NOW, false),
        Err(JoinRefusal::Storage)
    );
    assert_eq!(
        redeem(&mut admitter, 4, &ticket, NOW, true),
        Err(JoinRefusal::Used)
    );
    let again = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    assert_eq!(again.serial, first.serial);
}

#[test]
fn a_first_use_that_cannot_be_written_stays_while_its_bearer_has_asked_again() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let request = JoinRequest {
        secret: ticket.0.secret,
        name: ticket.0.name.clone(),
    };
    admitter.handle_join_request(NOW, CONN, key(3).peer_id(), &request, None);
    admitter.handle_join_request(NOW, CONN, key(3).peer_id(), &request, None);
    let (first, second) = (admitter.poll_job().unwrap(), admitter.poll_job().unwrap());
    admitter.handle_persisted(first.id, false);
    admitter.handle_persisted(second.id, true);
    while admitter.poll_transmit().is_some() {}
    while admitter.poll_event().is_some() {}
    assert_eq!(
        redeem(&mut admitter, 4, &ticket, NOW, true),
        Err(JoinRefusal::Used)
    );
}

#[test]
fn a_member_that_asks_for_renewals_without_pause_costs_one_write_a_minute() {
    let mut admitter = admitter();
    let (membership, _) = admitter.admit(NOW, key(3).peer_id(), id("m"), None).unwrap();
    settle(&mut admitter, true);
    let request = RenewRequest { membership };
    for second in 0..120 {
        let now = Now {
            mono: NOW.mono.after(Duration::from_secs(second)),
            ..NOW
        };
        admitter.handle_renew_request(now, CONN, key(3).peer_id(), &request);
    }
    assert_eq!(settle(&mut admitter, true).len(), 2);
}

#[test]
fn the_use_is_written_before_the_answer_leaves() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let request = JoinRequest {
        secret: ticket.0.secret,
        name: ticket.0.name.clone(),
    };
    admitter.handle_join_request(NOW, CONN, key(3).peer_id(), &request, None);
    assert!(admitter.poll_transmit().is_none());
    let changes = settle(&mut admitter, true);
    assert!(matches!(
        changes[..],
        [StateChange::Ticket(_), StateChange::Grant(_)]
    ));
    assert!(admitter.poll_transmit().is_some());
}

#[test]
fn a_name_is_granted_once_until_its_holder_is_revoked() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let member = redeem(&mut admitter, 3, &ticket, NOW, true).unwrap();
    for name in ["gpu", "gpu/x"] {
        let refused = admitter.invite(NOW, id(name), HOUR, 1, vec![], None).unwrap_err();
        assert_eq!(
            refused,
            AdmitError::NameTaken {
                name: id(name),
                holder: key(3).peer_id()
            }
        );
    }
    let revocation = Revocation {
        peer: member.peer,
        name: member.name,
        serial: member.serial,
        not_after: member.not_after,
        delegation: None,
    };
    assert!(admitter.handle_revocation(NOW, revocation.clone()));
    assert!(
        !admitter.handle_revocation(NOW, revocation),
        "it is news only once"
    );
    assert!(admitter.invite(NOW, id("gpu"), HOUR, 1, vec![], None).is_ok());
    assert_eq!(
        redeem(&mut admitter, 3, &ticket, NOW, true),
        Err(JoinRefusal::Revoked)
    );
}

#[test]
fn a_peer_that_may_not_admit_issues_nothing_and_redeems_nothing() {
    let mut other = joiner(7);
    assert_eq!(
        other.invite(NOW, id("x"), HOUR, 1, vec![], None).unwrap_err(),
        AdmitError::NotAnAdmitter
    );
    let request = JoinRequest {
        secret: [0; 16],
        name: id("x"),
    };
    other.handle_join_request(NOW, CONN, key(3).peer_id(), &request, None);
    let Some((_, Frame::JoinReply(reply))) = other.poll_transmit() else {
        panic!("no reply")
    };
    assert_eq!(reply.refusal, Some(JoinRefusal::NotAnAdmitter));
}

#[test]
fn a_certificate_is_renewed_before_it_ends_with_the_same_serial() {
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 1);
    let (membership, _) = admitter.admit(NOW, key(3).peer_id(), id("m"), None).unwrap();
    settle(&mut admitter, true);
    drop(ticket);
    let mut member = joiner(3);
    member.adopt(NOW, admitter.root().unwrap().clone(), membership, None);
    settle(&mut member, true);
    let serial = member.own().unwrap().1.serial;
    member.renew_if_due(NOW, CONN, key(2).peer_id());
    assert!(member.poll_transmit().is_none(), "it is not time yet");
    let late = Now {
        mono: Instant(1),
        wall: NOW.wall.after(CERTIFICATE_VALIDITY - RENEW_BEFORE / 2),
    };
    member.renew_if_due(late, CONN, key(2).peer_id());
    let Some((_, Frame::RenewRequest(request))) = member.poll_transmit() else {
        panic!("no request")
    };
    while admitter.poll_transmit().is_some() {}
    admitter.handle_renew_request(late, CONN, key(3).peer_id(), &request);
    settle(&mut admitter, true);
    let Some((_, Frame::RenewReply(reply))) = admitter.poll_transmit() else {
        panic!("no reply")
    };
    member.handle_renew_reply(late, key(4).peer_id(), reply.clone());
    settle(&mut member, true);
    assert_eq!(
        member.own().unwrap().1.not_after,
        NOW.wall.after(CERTIFICATE_VALIDITY),
        "nobody else was asked"
    );
    member.handle_renew_reply(late, key(2).peer_id(), reply);
    settle(&mut member, true);
    let renewed = member.own().unwrap().1;
    assert_eq!(renewed.serial, serial);
    assert!(renewed.not_after > NOW.wall.after(CERTIFICATE_VALIDITY + CLOCK_SKEW_MAX));
}

#[test]
fn a_stranger_cannot_renew_a_certificate_that_it_does_not_hold() {
    let mut admitter = admitter();
    let (membership, _) = admitter.admit(NOW, key(3).peer_id(), id("m"), None).unwrap();
    settle(&mut admitter, true);
    admitter.handle_renew_request(NOW, CONN, key(4).peer_id(), &RenewRequest { membership });
    let Some((_, Frame::RenewReply(reply))) = admitter.poll_transmit() else {
        panic!("no reply")
    };
    assert_eq!(
        (reply.membership, reply.refusal),
        (None, Some(JoinRefusal::NotAnAdmitter))
    );
}

#[test]
fn a_renewal_that_could_not_be_written_is_answered_as_a_renewal() {
    let mut admitter = admitter();
    let (membership, _) = admitter.admit(NOW, key(3).peer_id(), id("m"), None).unwrap();
    settle(&mut admitter, true);
    admitter.handle_renew_request(NOW, CONN, key(3).peer_id(), &RenewRequest { membership });
    settle(&mut admitter, false);
    let Some((_, Frame::RenewReply(reply))) = admitter.poll_transmit() else {
        panic!("no renewal reply")
    };
    assert_eq!(reply.refusal, Some(JoinRefusal::Storage));
}

#[test]
fn a_member_of_an_open_mesh_renews_by_itself() {
    let root = MeshRoot::Open {
        name: String::from("playground"),
    };
    let membership = Membership::open(&root, &key(3), id("me"), NOW.wall);
    let mut member = joiner(3);
    member.adopt(NOW, root, membership, None);
    settle(&mut member, true);
    member.renew_own(NOW);
    assert!(member.poll_job().is_none(), "it is not time yet");
    let late = Now {
        mono: Instant(1),
        wall: NOW.wall.after(CERTIFICATE_VALIDITY - RENEW_BEFORE / 2),
    };
    member.renew_own(late);
    settle(&mut member, true);
    assert!(member.own().unwrap().1.not_after > NOW.wall.after(CERTIFICATE_VALIDITY));
}

#[test]
fn a_ticket_counts_to_its_last_moment_and_is_forgotten_on_the_disk_afterwards() {
    // [JOIN-2]
    let mut admitter = admitter();
    let ticket = ticket(&mut admitter, 2);
    let hash = TicketSecret(ticket.0.secret).hash();
    let at = |passed| Now {
        mono: NOW.mono,
        wall: NOW.wall.after(passed),
    };
    let (last, over) = (at(HOUR), at(HOUR + Duration::from_millis(1)));
    assert!(redeem(&mut admitter, 3, &ticket, last, true).is_ok());
    assert_eq!(
        redeem(&mut admitter, 4, &ticket, over, true),
        Err(JoinRefusal::Expired)
    );
    admitter.invite(last, id("a"), HOUR, 1, vec![], None).unwrap();
    assert!(matches!(
        settle(&mut admitter, true)[..],
        [StateChange::Ticket(_)]
    ));
    admitter.invite(over, id("b"), HOUR, 1, vec![], None).unwrap();
    let changes = settle(&mut admitter, true);
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0], StateChange::TicketGone(hash));
    assert_eq!(
        redeem(&mut admitter, 4, &ticket, over, true),
        Err(JoinRefusal::UnknownTicket)
    );
}

#[test]
fn a_ticket_has_one_to_a_thousand_uses() {
    let mut admitter = admitter();
    for (uses, good) in [
        (0, false),
        (1, true),
        (TICKET_USES_MAX, true),
        (TICKET_USES_MAX + 1, false),
    ] {
        let issued = admitter.invite(NOW, id("gpu"), HOUR, uses, vec![], None);
        assert_eq!(
            issued.map_err(|error| error == AdmitError::Uses).is_ok(),
            good,
            "{uses}"
        );
    }
}

#[test]
fn a_renewal_is_taken_with_the_same_name_and_serial_and_a_later_end_only() {
    // [JOIN-8]
    let admitter = admitter();
    let (root, right) = (admitter.root().unwrap(), admitter.admitter().unwrap());
    let (peer, serial) = (key(3).peer_id(), Serial::new(NOW.wall, [3; 10]));
    let valid = CERTIFICATE_VALIDITY;
    let late = Now {
        mono: Instant(1),
        wall: NOW.wall.after(valid - RENEW_BEFORE / 2),
    };
    let first = right.admit(root, peer, id("m"), serial, NOW.wall, valid);
    let other_serial = Serial::new(NOW.wall, [4; 10]);
    for (name, shown, wall, taken) in [
        ("m", serial, late.wall, true),
        ("n", serial, late.wall, false),
        ("m", other_serial, late.wall, false),
        ("n", other_serial, late.wall, false),
        ("m", serial, NOW.wall, false),
    ] {
        let mut member = joiner(3);
        member.adopt(NOW, root.clone(), first.clone(), None);
        settle(&mut member, true);
        member.renew_if_due(late, CONN, key(2).peer_id());
        let reply = JoinReply {
            membership: Some(right.admit(root, peer, id(name), shown, wall, valid)),
            refusal: None,
        };
        member.handle_renew_reply(late, key(2).peer_id(), reply);
        assert_eq!(
            !settle(&mut member, true).is_empty(),
            taken,
            "{name} {shown:?} {wall:?}"
        );
    }
}

#[test]
fn what_is_kept_is_counted() {
    let mut admitter = admitter();
    assert_eq!(admitter.sizes(), (0, 0, 0, 0));
    admitter.invite(NOW, id("a"), HOUR, 1, vec![], None).unwrap();
    admitter.invite(NOW, id("b"), HOUR, 1, vec![], None).unwrap();
    let (membership, _) = admitter.admit(NOW, key(3).peer_id(), id("m"), None).unwrap();
    assert_eq!(
        admitter.sizes(),
        (2, 1, 0, 3),
        "three changes are not on disk yet"
    );
    settle(&mut admitter, true);
    let root = admitter.root().unwrap().clone();
    let member = Membership::verify(&membership.to_bytes(), &root, &key(3).peer_id(), NOW.wall).unwrap();
    let revocation = Revocation {
        peer: member.peer,
        name: member.name,
        serial: member.serial,
        not_after: member.not_after,
        delegation: None,
    };
    admitter.handle_revocation(NOW, revocation);
    assert_eq!(admitter.sizes(), (2, 1, 1, 0));
}
