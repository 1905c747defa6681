//! What the conditions mean, in made-up time.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::*;
use crate::wire::impaired::{Bursts, Partition};

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
fn what_is_on_its_way_out_is_not_overtaken_and_counts_until_it_has_left() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(50),
        ..Impairment::default()
    });
    for mark in 0..5 {
        line.push(now, datagram(100, mark));
    }
    line.set_impairment(Impairment::default());
    let (remote, mut due) = ("192.0.2.1:4001".parse().unwrap(), Vec::new());
    line.take_due(now + Duration::from_millis(49), 3, &mut due);
    assert!(due.is_empty());
    line.take_due(now + Duration::from_millis(50), 3, &mut due);
    let marks: Vec<u8> = due.iter().map(|it| it.contents[0]).collect();
    assert_eq!(marks, [0, 1, 2]);

    line.all_left();
    due.clear();
    line.take_due(now + Duration::from_millis(50), 3, &mut due);
    assert_eq!(due.len(), 2);
    assert!(line.held.is_empty() && !line.passes_at_once(remote));
    assert_eq!((line.stats.sent, line.leaving_bytes), (3, 200));

    line.all_left();
    assert!(line.passes_at_once(remote));
    assert_eq!((line.stats.sent, line.leaving_bytes), (5, 0));
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

#[test]
fn a_normal_jitter_has_its_deviation_and_is_never_early_by_more_than_the_latency() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(50),
        jitter: Duration::from_millis(10),
        jitter_shape: JitterShape::Normal,
        ..Impairment::default()
    });
    for _ in 0..20_000 {
        line.push(now, datagram(1, 0));
    }
    let delays: Vec<f64> = drain(&mut line)
        .iter()
        .map(|(at, _)| (*at - now).as_secs_f64() * 1e3)
        .collect();
    let mean = delays.iter().sum::<f64>() / 20_000.0;
    let variance = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / 20_000.0;
    assert!((49.7..50.3).contains(&mean), "{mean}");
    assert!((9.5..10.5).contains(&variance.sqrt()), "{}", variance.sqrt());

    line.set_impairment(Impairment {
        latency: Duration::from_millis(1),
        jitter: Duration::from_millis(10),
        jitter_shape: JitterShape::Normal,
        ..Impairment::default()
    });
    for _ in 0..100 {
        line.push(now, datagram(1, 0));
    }
    assert!(drain(&mut line).iter().all(|(at, _)| *at >= now));
}

#[test]
fn a_link_with_bursts_loses_its_share_in_runs() {
    let (mut line, now) = line(Impairment {
        bursts: Some(Bursts {
            begin_ppm: 10_000,
            end_ppm: 200_000,
            loss_ppm: 1_000_000,
        }),
        ..Impairment::default()
    });
    let lost: Vec<bool> = (0..1_000_000)
        .map(|_| {
            let fate = line.push(now, datagram(1, 0));
            drain(&mut line);
            fate == Fate::Lost
        })
        .collect();
    // One datagram in 1 + 20 is sent while the link is bad, five of them in a row.
    let share = line.stats.lost as f64 / 1e6;
    assert!((0.0452..0.0500).contains(&share), "{share}");
    let runs = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
    let length = line.stats.lost as f64 / runs as f64;
    assert!((4.75..5.25).contains(&length), "{length}");
}

#[test]
fn a_million_datagrams_have_the_latency_the_loss_and_the_rate_that_were_asked_for() {
    let rate = 12_500_000;
    let (mut line, start) = line(Impairment {
        latency: Duration::from_millis(20),
        jitter: Duration::from_millis(2),
        loss_ppm: 10_000,
        rate_bytes_per_s: NonZeroU64::new(rate),
        ..Impairment::default()
    });
    let (mut delivered, mut waited, mut last) = (0u64, Duration::ZERO, start);
    for sent in 0..1_000_000u64 {
        // Offered at just the rate, so that the queue adds nothing to the latency.
        let now = start + Duration::from_nanos(sent * 100 * 1_000_000_000 / rate);
        line.push(now, datagram(100, 0));
        while let Some(datagram) = line.pop_due(now) {
            delivered += datagram.contents.len() as u64;
            last = now;
        }
        if let Some(due) = line.held.last_key_value() {
            waited += due.0.0 - now;
        }
    }
    let loss = line.stats.lost as f64 / 1e6;
    assert!((0.0095..0.0105).contains(&loss), "{loss}");
    let got = delivered as f64 / (last - start).as_secs_f64() / rate as f64;
    assert!((0.95..=1.0).contains(&got), "{got}");
    let latency = waited.as_secs_f64() / 1e6;
    assert!((0.020..0.0225).contains(&latency), "{latency}");
}

#[test]
fn datagrams_are_reordered_doubled_and_damaged_as_often_as_asked() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(10),
        reorder_ppm: 100_000,
        duplicate_ppm: 100_000,
        corrupt_ppm: 100_000,
        ..Impairment::default()
    });
    for _ in 0..10_000 {
        line.push(now, datagram(8, 0));
    }
    let stats = line.stats;
    let out = drain(&mut line);
    // Ten thousand draws at 10 %: the standard deviation is 30.
    let expected = 850..=1_150;
    assert!(expected.contains(&stats.duplicated), "{stats:?}");
    assert!(expected.contains(&stats.corrupted), "{stats:?}");
    assert!((900..=1_300).contains(&stats.reordered), "{stats:?}");
    assert_eq!(out.len() as u64, 10_000 + stats.duplicated);
    assert_eq!(
        out.iter().filter(|(at, _)| *at == now).count() as u64,
        stats.reordered
    );
    let flipped = |bytes: &Bytes| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    assert!(out.iter().all(|(_, bytes)| flipped(bytes) <= 1));
    assert!(out.iter().filter(|(_, bytes)| flipped(bytes) == 1).count() as u64 >= stats.corrupted);
    assert_eq!(line.held_bytes, 0);
}

#[test]
fn a_remote_may_have_conditions_of_its_own() {
    let (mut line, now) = line(Impairment {
        latency: Duration::from_millis(10),
        ..Impairment::default()
    });
    let other: SocketAddr = "192.0.2.2:4001".parse().unwrap();
    let far = Impairment {
        latency: Duration::from_millis(100),
        partition: Partition::All(Cut::Incoming),
        ..Impairment::default()
    };
    line.set_rule(LinkRule(Arc::new(move |remote| {
        (remote == other).then(|| far.clone())
    })));
    for destination in [other, "192.0.2.1:4001".parse().unwrap()] {
        let datagram = Datagram {
            destination,
            ..datagram(1, 0)
        };
        assert_eq!(line.push(now, datagram), Fate::Held);
    }
    let delays: Vec<Duration> = drain(&mut line).iter().map(|(at, _)| *at - now).collect();
    assert_eq!(delays, [Duration::from_millis(10), Duration::from_millis(100)]);
    assert!(line.drops_incoming(now, "[::ffff:192.0.2.2]:4001".parse().unwrap()));
    assert!(!line.drops_incoming(now, "192.0.2.1:4001".parse().unwrap()));
    line.set_rule(LinkRule(Arc::new(|_| Some(Impairment::default()))));
    assert!(!line.drops_incoming(now, other));
    for port in 0..=LINKS_MAX {
        let remote = SocketAddr::from(([192, 0, 2, 3], u16::try_from(port).unwrap()));
        line.drops_incoming(now, remote);
    }
    assert_eq!(line.links.len(), LINKS_MAX);
}

#[test]
fn who_takes_answers_only_hears_whom_it_has_sent_to_within_the_window() {
    let (mut line, now) = line(Impairment {
        answers_only: true,
        ..Impairment::default()
    });
    let remote = datagram(1, 0).destination;
    assert!(line.drops_incoming(now, remote));
    line.push(now, datagram(1, 0));
    assert!(!line.drops_incoming(now, remote));
    assert!(!line.drops_incoming(now + ANSWER_WINDOW, remote));
    let later = now + ANSWER_WINDOW + Duration::from_millis(1);
    assert!(line.drops_incoming(later, remote));
    assert!(line.drops_incoming(now, "192.0.2.9:4001".parse().unwrap()));
    assert_eq!((line.stats.unasked, line.stats.partitioned), (3, 0));
    for port in 0..=LINKS_MAX {
        let destination = SocketAddr::from(([192, 0, 2, 3], u16::try_from(port).unwrap()));
        let datagram = Datagram {
            destination,
            ..datagram(1, 0)
        };
        line.push(now, datagram);
    }
    assert_eq!(line.asked.len(), LINKS_MAX);
}

#[test]
fn a_line_that_keeps_the_order_lets_nothing_overtake_and_others_do() {
    for keeps_order in [true, false] {
        let (mut line, now) = line(Impairment {
            latency: Duration::from_millis(5),
            jitter: Duration::from_millis(35),
            keeps_order,
            ..Impairment::default()
        });
        for mark in 0..100 {
            line.push(now + Duration::from_millis(u64::from(mark)), datagram(10, mark));
        }
        let marks: Vec<u8> = drain(&mut line).iter().map(|(_, contents)| contents[0]).collect();
        assert_eq!(marks.is_sorted(), keeps_order);
        assert_eq!(marks.len(), 100);
    }
}
