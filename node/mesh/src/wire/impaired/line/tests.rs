//! What the conditions mean, in made-up time.

use std::num::NonZeroU64;

use super::*;

fn line(impairment: Impairment) -> (Line, Instant) {
    let mut line = Line::new(7);
    line.set_impairment(impairment);
    (line, Instant::now())
}

fn datagram(bytes: usize, mark: u8) -> Datagram {
    Datagram {
        destination: "192.0.2.1:4001".parse().unwrap(),
        contents: vec![mark; bytes].into(),
        ecn: None,
        src_ip: None,
    }
}

/// Takes everything out, in order, with the time at which it was due.
fn drain(line: &mut Line) -> Vec<(Instant, Bytes)> {
    let mut out = Vec::new();
    while let Some(at) = line.next_due() {
        out.push((at, line.pop_due(at).unwrap().contents));
    }
    out
}

#[test]
fn latency_delays_and_keeps_the_order_of_equal_delays() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(50),
        ..Impairment::default()
    });
    for mark in 0..25 {
        assert_eq!(line.push(now, datagram(100, mark)), Fate::Held);
    }
    assert!(line.pop_due(now + Duration::from_millis(49)).is_none());
    for (mark, (at, contents)) in drain(&mut line).into_iter().enumerate() {
        assert_eq!(at, now + Duration::from_millis(50));
        assert_eq!(usize::from(contents[0]), mark);
    }
    assert_eq!(line.held_bytes, 0);
}

#[test]
fn jitter_stays_within_its_bound_and_spreads() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(10),
        jitter: Duration::from_millis(40),
        ..Impairment::default()
    });
    for _ in 0..1_000 {
        line.push(now, datagram(10, 0));
    }
    let delays: Vec<Duration> = drain(&mut line).iter().map(|(at, _)| *at - now).collect();
    let window = Duration::from_millis(10)..=Duration::from_millis(50);
    assert!(delays.iter().all(|delay| window.contains(delay)));
    let mean = delays.iter().sum::<Duration>() / 1_000;
    let middle = Duration::from_millis(28)..=Duration::from_millis(32);
    assert!(middle.contains(&mean), "{mean:?}");
}

#[test]
fn loss_is_within_statistical_bounds_and_follows_the_seed() {
    let run = || {
        let (mut line, now) = line(Impairment {
            loss_ppm: 100_000,
            ..Impairment::default()
        });
        let fates: Vec<Fate> = (0..10_000).map(|_| line.push(now, datagram(1, 0))).collect();
        // Ten thousand draws at 10 %: the standard deviation is 30.
        assert!((850..=1_150).contains(&line.stats.lost), "{:?}", line.stats);
        fates
    };
    assert_eq!(run(), run());
}

#[test]
fn total_loss_lets_nothing_through() {
    let (mut line, now) = line(Impairment {
        loss_ppm: 1_000_000,
        ..Impairment::default()
    });
    for _ in 0..1_000 {
        assert_eq!(line.push(now, datagram(1, 0)), Fate::Lost);
    }
}

#[test]
fn the_rate_spaces_datagrams_out() {
    let (mut line, now) = line(Impairment {
        rate_bytes_per_s: NonZeroU64::new(100_000),
        ..Impairment::default()
    });
    for _ in 0..100 {
        line.push(now, datagram(1_000, 0));
    }
    for (i, (at, _)) in drain(&mut line).into_iter().enumerate() {
        assert_eq!(at - now, Duration::from_millis(10 * (i as u64 + 1)));
    }
}

#[test]
fn a_full_queue_drops_the_newest_and_takes_more_once_it_has_drained() {
    let (mut line, now) = line(Impairment {
        rate_bytes_per_s: NonZeroU64::new(100_000),
        queue_bytes_max: 10_000,
        ..Impairment::default()
    });
    for mark in 0..40 {
        let expected = if mark < 10 { Fate::Held } else { Fate::Overflowed };
        assert_eq!(line.push(now, datagram(1_000, mark)), expected);
    }
    let later = now + Duration::from_millis(10);
    assert_eq!(line.push(later, datagram(1_000, 77)), Fate::Held);
    assert_eq!(line.push(later, datagram(1_000, 78)), Fate::Overflowed);
    let (at, last) = drain(&mut line).pop().unwrap();
    assert_eq!(last[0], 77);
    assert_eq!(at - now, Duration::from_millis(110));
}

#[test]
fn what_is_held_is_bounded_whatever_the_latency() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_secs(3_600),
        ..Impairment::default()
    });
    for _ in 0..=HELD_BYTES_MAX / 65_000 {
        line.push(now, datagram(65_000, 0));
    }
    assert_eq!(line.stats.overflowed, 1);
}
