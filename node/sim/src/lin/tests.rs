//! Tables of known histories, random ones, and a second opinion from `stateright`'s tester.

use super::*;
use crate::history::{ClientId, Expect, Op, Outcome, Reply, Seen};

/// Parses `client from-to operation = answer`, one a line; `?` for no answer, `!` for a certain failure.
/// Operations: `put k v`, `get k`, `del k`, `cas k absent|mod:R|val:V v`. Answers: a revision for what
/// wrote; `V/MOD/VERSION @R` or `- @R` for what read.
fn parse(text: &str) -> History {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    History {
        events: lines.map(parse_event).collect(),
    }
}

fn parse_event(line: &str) -> Event {
    let (question, answer) = match line.split_once('=') {
        Some((question, answer)) => (question, answer.trim()),
        None => (&line[..line.len() - 1], &line[line.len() - 1..]),
    };
    let words: Vec<&str> = question.split_whitespace().collect();
    let (from, to) = words[1].split_once('-').unwrap();
    let key = words[3].to_owned();
    let op = match words[2] {
        "put" => Op::Put {
            key,
            value: words[4].to_owned(),
        },
        "get" => Op::Get { key },
        "del" => Op::Delete { key },
        "cas" => {
            let expect = match words[4].split_once(':') {
                None => Expect::Absent,
                Some(("mod", revision)) => Expect::ModRevision(revision.parse().unwrap()),
                Some((_, value)) => Expect::Value(value.to_owned()),
            };
            Op::CompareAndSwap {
                key,
                expect,
                value: words[5].to_owned(),
            }
        }
        other => panic!("operation {other}"),
    };
    let outcome = match answer {
        "?" => Outcome::Unknown {
            error: "timeout".to_owned(),
        },
        "!" => Outcome::Failed {
            error: "refused".to_owned(),
        },
        _ => Outcome::Ok {
            reply: parse_reply(&op, answer),
        },
    };
    Event {
        client: ClientId(words[0][1..].parse().unwrap()),
        op,
        invoked_ns: from.parse().unwrap(),
        returned_ns: to.parse().unwrap(),
        outcome,
    }
}

fn parse_reply(op: &Op, answer: &str) -> Reply {
    let Some((shown, revision)) = answer.split_once('@') else {
        let revision = answer.parse().unwrap();
        return match op {
            Op::Put { .. } => Reply::Put { revision },
            Op::Delete { .. } => Reply::Delete {
                revision,
                deleted: true,
            },
            Op::CompareAndSwap { .. } => Reply::Swapped { revision },
            Op::Get { .. } => panic!("a get shows something: {answer}"),
        };
    };
    let revision = revision.parse().unwrap();
    let parts: Vec<&str> = shown.trim().split('/').collect();
    let seen = (parts[0] != "-").then(|| Seen {
        value: parts[0].to_owned(),
        mod_revision: parts[1].parse().unwrap(),
        version: parts[2].parse().unwrap(),
    });
    match op {
        Op::Get { .. } => Reply::Get { revision, seen },
        Op::CompareAndSwap { .. } => Reply::NotSwapped { revision, seen },
        Op::Delete { .. } => Reply::Delete {
            revision,
            deleted: false,
        },
        Op::Put { .. } => panic!("a put shows nothing: {answer}"),
    }
}

fn judge(text: &str) -> Vec<Rule> {
    match check(&parse(text), Options::default()) {
        Verdict::Linearizable => Vec::new(),
        Verdict::Violated(violations) => violations.iter().map(|violation| violation.rule).collect(),
        Verdict::Undecided(keys) => panic!("undecided {keys:?}:\n{text}"),
    }
}

#[test]
fn good_histories_are_accepted() {
    let table = [
        ("nothing happened", ""),
        (
            "one client in sequence",
            "c1 0-1 put k a = 2\nc1 2-3 get k = a/2/1 @2\nc1 4-5 del k = 3\nc1 6-7 get k = - @3",
        ),
        (
            "a read may see a concurrent write or not",
            "c1 0-9 put k a = 2\nc2 1-2 get k = - @1\nc3 3-4 get k = a/2/1 @2",
        ),
        (
            "other keys move the revision",
            "c1 0-1 put k a = 2\nc1 2-3 put j b = 7\nc1 4-5 get k = a/2/1 @7\nc1 6-7 put k c = 8",
        ),
        (
            "a timed-out write took effect",
            "c1 0-1 put k a ?\nc2 2-3 get k = a/5/1 @5",
        ),
        (
            "a timed-out write never took effect",
            "c1 0-1 put k a ?\nc2 2-3 get k = - @1\nc2 4-5 put k b = 2\nc2 6-7 get k = b/2/1 @2",
        ),
        (
            "a timed-out write took effect late",
            "c1 0-1 put k a ?\nc2 2-3 get k = - @1\nc2 4-5 put k b = 2\nc2 6-7 get k = a/3/2 @3",
        ),
        (
            "an unseen timed-out write shows in the version",
            "c1 0-1 put k a ?\nc2 2-3 put k b = 9\nc2 4-5 get k = b/9/2 @9",
        ),
        (
            "an unseen timed-out delete shows in the version",
            "c1 0-1 put k a = 2\nc1 2-3 del k ?\nc2 4-5 put k b = 9\nc2 6-7 get k = b/9/1 @9",
        ),
        ("a refused write is not there", "c1 0-1 put k a !\nc2 2-3 get k = - @1"),
        (
            "a swap on a revision wins once",
            "c1 0-1 put k a = 2\nc1 2-9 cas k mod:2 b = 3\nc2 2-9 cas k mod:2 c = b/3/2 @3",
        ),
        (
            "a swap on absence",
            "c1 0-1 cas k absent a = 2\nc2 2-3 cas k absent b = a/2/1 @2",
        ),
        (
            "a swap on a value",
            "c1 0-1 put k a = 2\nc2 2-3 cas k val:a b = 3\nc2 4-5 cas k val:a c = b/3/2 @3",
        ),
        (
            "a timed-out swap took effect",
            "c1 0-1 put k a = 2\nc2 2-3 cas k mod:2 b ?\nc1 4-5 get k = b/3/2 @3",
        ),
        (
            "a swap on the revision of a timed-out write",
            "c1 0-1 put k a ?\nc2 2-3 cas k mod:4 b = 6\nc1 4-5 get k = b/6/2 @6",
        ),
        (
            "deleting nothing makes no revision",
            "c1 0-1 put j a = 2\nc1 2-3 del k = - @2\nc1 4-5 get j = a/2/1 @2",
        ),
    ];
    for (name, text) in table {
        assert_eq!(judge(text), [], "{name}:\n{text}");
    }
}

#[test]
fn bad_histories_are_rejected_by_the_rule_that_they_break() {
    use Rule::{Order, RevisionContent, RevisionRises, RevisionUnique, StaleRead};
    let table: [(&str, &str, &[Rule]); 19] = [
        ("a value from nowhere", "c1 0-1 get k = a/2/1 @2", &[Order]),
        (
            "a refused write took effect",
            "c1 0-1 put k a !\nc2 2-3 get k = a/2/1 @2",
            &[Order],
        ),
        (
            "a stale read with an honest header",
            "c1 0-1 put k a = 2\nc1 2-3 put k b = 3\nc2 4-5 get k = a/2/1 @2",
            &[StaleRead, Order],
        ),
        (
            "a stale read under a new header",
            "c1 0-1 put k a = 2\nc1 2-3 put k b = 3\nc2 4-5 get k = a/2/1 @3",
            &[Order],
        ),
        ("a lost write", "c1 0-1 put k a = 2\nc2 2-3 get k = - @2", &[Order]),
        (
            "two readers disagree on the order",
            "c1 0-99 put k a ?\nc2 0-99 put k b ?\nc3 1-2 get k = a/2/1 @2\nc3 3-4 get k = b/3/2 @3\nc4 5-6 get k = a/2/1 @3",
            &[Order],
        ),
        (
            "a write is seen and then unseen",
            "c1 0-9 put k a = 2\nc2 1-2 get k = a/2/1 @2\nc2 3-4 get k = - @2",
            &[Order],
        ),
        (
            "a revision used twice",
            "c1 0-9 put k a = 2\nc2 0-9 put j b = 2",
            &[RevisionUnique, RevisionContent],
        ),
        (
            "a later write with a lower revision, other key",
            "c1 0-1 put k a = 5\nc2 2-3 put j b = 4",
            &[RevisionRises],
        ),
        (
            "a later read of another key at a lower revision",
            "c1 0-1 put k a = 5\nc2 2-3 get j = - @4",
            &[StaleRead],
        ),
        (
            "a write applied twice",
            "c1 0-1 put k a = 2\nc2 2-3 get k = a/3/2 @3",
            &[Order],
        ),
        (
            "a write reordered before its invocation",
            "c1 0-1 get k = a/2/1 @2\nc2 2-3 put k a = 2",
            &[RevisionRises, Order],
        ),
        (
            "a delete that did not delete",
            "c1 0-1 put k a = 2\nc1 2-3 del k = 3\nc2 4-5 get k = a/2/1 @3",
            &[Order],
        ),
        (
            "a delete finds nothing where something is",
            "c1 0-1 put k a = 2\nc1 2-3 del k = - @2",
            &[Order],
        ),
        (
            "two swaps win on one revision",
            "c1 0-1 put k a = 2\nc1 2-9 cas k mod:2 b = 3\nc2 2-9 cas k mod:2 c = 4",
            &[Order],
        ),
        (
            "two swaps win on absence",
            "c1 0-9 cas k absent a = 2\nc2 0-9 cas k absent b = 3",
            &[Order],
        ),
        (
            "a swap fails though it should hold",
            "c1 0-1 put k a = 2\nc2 2-3 cas k val:a b = a/2/1 @2",
            &[Order],
        ),
        (
            "a revision shown with two values",
            "c1 0-1 put k a = 2\nc2 2-3 get k = b/2/1 @2",
            &[RevisionContent, Order],
        ),
        (
            "more timed-out writes than revisions between",
            "c1 0-1 put k a = 2\nc2 2-3 put k b ?\nc3 2-3 put k c ?\nc1 4-5 put k d = 4\nc1 6-7 get k = d/4/4 @4",
            &[Order],
        ),
    ];
    for (name, text, rules) in table {
        assert_eq!(judge(text), rules, "{name}:\n{text}");
    }
}

#[test]
fn an_event_that_ends_before_it_begins_blames_the_recorder() {
    assert_eq!(judge("c1 5-4 put k a = 2"), [Rule::Recorder]);
}

#[test]
fn a_violation_shows_the_smallest_window() {
    let mut text = String::new();
    for number in 0..200 {
        let (at, revision) = (number * 10_000, 2 * number + 2);
        text += &format!("c1 {at}-{} put k v{number} = {revision}\n", at + 3000);
        text += &format!(
            "c2 {}-{} get k = v{number}/{revision}/{} @{revision}\n",
            at + 4000,
            at + 5000,
            number + 1
        );
        text += &format!("c3 {at}-{} put k w{number} ?\n", at + 9000);
    }
    // After v199 was written, somebody sees v150.
    text += "c4 2500000-2600000 get k = v150/302/151 @400\n";
    text += "c1 2700000-2800000 get k = v199/400/200 @400\n";
    let Verdict::Violated(violations) = check(&parse(&text), Options::default()) else {
        panic!("not rejected");
    };
    expect_test::expect![[r#"
        violation at key "k": no order of these operations explains every answer
          1.500ms .. 1.503ms  c1  put k = "v150"  done at 302
          1.510ms .. 1.513ms  c1  put k = "v151"  done at 304
          1.514ms .. 1.515ms  c2  get k           "v151" (mod revision 304, version 152) at 304
        > 2.500ms .. 2.600ms  c4  get k           "v150" (mod revision 302, version 151) at 400
    "#]]
    .assert_eq(&violations[0].to_string());
}

#[test]
fn lost_writes_are_found_in_the_final_state() {
    let table = [
        ("kept", "c1 0-1 put k a = 2", "k=a/2", 0),
        ("superseded", "c1 0-1 put k a = 2\nc2 0-1 put k b ?", "k=b/3", 0),
        ("gone", "c1 0-1 put k a = 2", "", 1),
        ("may have been deleted", "c1 0-1 put k a = 2\nc2 0-1 del k ?", "", 0),
        (
            "older than acknowledged",
            "c1 0-1 put k a = 2\nc1 2-3 put k b = 3",
            "k=a/2",
            1,
        ),
        ("another value at its revision", "c1 0-1 put k a = 2", "k=b/2", 1),
        (
            "a deleted key is back",
            "c1 0-1 put k a = 2\nc1 2-3 del k = 3",
            "k=a/2",
            1,
        ),
        ("deleted", "c1 0-1 put k a = 2\nc1 2-3 del k = 3", "", 0),
        ("every key counts", "c1 0-1 put k a = 2\nc1 2-3 put j b = 3", "", 2),
    ];
    for (name, text, state, count) in table {
        let state = state.split_whitespace().map(|entry| {
            let (key, rest) = entry.split_once('=').unwrap();
            let (value, revision) = rest.split_once('/').unwrap();
            let mod_revision = revision.parse().unwrap();
            (
                key.to_owned(),
                Seen {
                    value: value.to_owned(),
                    mod_revision,
                    version: 1,
                },
            )
        });
        let found = lost_writes(&parse(text), &state.collect());
        assert_eq!(found.len(), count, "{name}: {found:?}");
    }
}

#[test]
fn a_read_may_say_an_older_revision_only_where_revisions_are_of_keys_and_never_an_older_value() {
    let of_keys = Options {
        revisions_of_keys: true,
        ..Options::default()
    };
    let table = [
        // Another key has moved on; this one is as it was.
        (
            "c1 0-1 put k a = 2\nc1 2-3 put other b = 3\nc2 4-5 get k = a/2/1 @2",
            true,
        ),
        ("c1 0-1 put k a = 2\nc1 2-3 put k b = 3\nc2 4-5 get k = a/2/1 @2", false),
        ("c1 0-1 put k a = 2\nc2 2-3 get k = - @1", false),
    ];
    for (text, passes) in table {
        assert_eq!(check(&parse(text), of_keys).passed(), passes, "{text}");
        assert!(!check(&parse(text), Options::default()).passed(), "{text}");
    }
}

#[test]
fn the_parts_of_a_transaction_share_a_revision_and_are_seen_together() {
    use Rule::{Order, RevisionContent, RevisionUnique};
    let both = "c1 0-1 put k a = 2\nc1 0-1 put j a = 2\n";
    let lost = "c1 0-1 put k a ?\nc1 0-1 put j a ?\n";
    let table: [(&str, &str, &str, &[Rule]); 10] = [
        (
            "both are seen",
            both,
            "c2 2-3 get k = a/2/1 @2\nc2 2-3 get j = a/2/1 @2",
            &[],
        ),
        (
            "one is seen",
            both,
            "c2 2-3 get k = a/2/1 @2\nc2 2-3 get j = - @2",
            &[Order],
        ),
        (
            "it shares its revision with another",
            both,
            "c3 0-1 put i b = 2",
            &[RevisionUnique, RevisionContent],
        ),
        (
            "another value has its revision",
            both,
            "c2 2-3 get j = b/2/1 @2",
            &[RevisionContent, Order],
        ),
        (
            "another key has its revision",
            both,
            "c2 2-3 get i = a/2/1 @2",
            &[RevisionContent, Order],
        ),
        (
            "nobody knows, and nobody saw it",
            lost,
            "c2 2-3 get k = - @2\nc2 2-3 get j = - @2",
            &[],
        ),
        (
            "nobody knows, and both were seen",
            lost,
            "c2 2-3 get k = a/2/1 @2\nc2 2-3 get j = a/2/1 @2",
            &[],
        ),
        (
            "nobody knows, and half of it was seen",
            lost,
            "c2 2-3 get k = a/2/1 @2\nc2 2-3 get j = - @2",
            &[Order],
        ),
        (
            "half of it came later",
            lost,
            "c2 2-3 get k = a/2/1 @2\nc2 4-5 get j = a/3/1 @3",
            &[Order],
        ),
        (
            "two swaps of one transaction of which one could not",
            "c1 0-1 put j z = 2\n",
            "c2 2-3 cas k absent a = 3\nc2 2-3 cas j absent a = 3",
            &[Order],
        ),
    ];
    for (name, writes, reads, rules) in table {
        let text = format!("{writes}{reads}");
        assert_eq!(judge(&text), rules, "{name}:\n{text}");
    }
}

#[test]
fn what_changed_nothing_may_say_its_own_shards_revision_and_never_an_older_value() {
    let of_shards = Options {
        revisions_of_shards: true,
        ..Options::default()
    };
    let before = "c1 0-1 put k a = 2\nc1 2-3 put other b = 3\n";
    for (answer, passes) in [
        ("c2 4-5 get k = a/2/1 @2", true),
        ("c2 4-5 cas k absent b = a/2/1 @2", true),
        ("c2 4-5 del none = - @2", true),
        ("c2 4-5 get k = - @1", false),
        ("c2 4-5 cas k mod:1 b = - @1", false),
        // What wrote has a revision of all shards.
        ("c2 4-5 put k b = 2", false),
    ] {
        let text = format!("{before}{answer}");
        assert_eq!(check(&parse(&text), of_shards).passed(), passes, "{text}");
        assert!(!check(&parse(&text), Options::default()).passed(), "{text}");
    }
}

#[test]
fn out_of_budget_is_undecided_and_no_pass() {
    let text = "c1 0-1 put k a = 2\nc1 2-3 put k b = 3\nc1 4-5 get k = b/3/2 @3";
    let verdict = check(
        &parse(text),
        Options {
            states_max: 1,
            ..Options::default()
        },
    );
    assert_eq!(verdict, Verdict::Undecided(vec!["k".to_owned()]));
    assert!(!verdict.passed());
}

#[test]
fn hundreds_of_timed_out_writes_do_not_explode() {
    let writes: String = (0..300)
        .map(|number| format!("c{number} 0-1 put k a{number} ?\n"))
        .collect();
    let deletes: String = (0..20).map(|number| format!("c{number} 0-1 del k ?\n")).collect();
    let good = format!("{writes}{deletes}c1 2-3 put k b = 900\nc1 4-5 get k = b/900/120 @900");
    assert_eq!(judge(&good), []);
    // Version 302 needs 301 earlier puts and there were 300.
    let bad = format!("{writes}c1 2-3 put k b = 900\nc1 4-5 get k = b/900/302 @900");
    assert_eq!(judge(&bad), [Rule::Order]);
}
