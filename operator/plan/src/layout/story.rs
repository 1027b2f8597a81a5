//! What became of the shards between two looks, for Events. Told from the shards themselves, because an operation may begin
//! and end between two looks.

use std::collections::BTreeMap;

use althing_crds::{ShardLayoutStatus, ShardState};

/// The most that is told of one look; the rest is counted.
const MOST: usize = 20;

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// One word: `ShardSplit`, `ShardMerged`, `ShardMoved`, `RevisionsSequenced`, `ShardsChanged`.
    pub reason: &'static str,
    /// What it is about, which keeps two events of one reason apart: `shard 5`.
    pub subject: String,
    /// A sentence.
    pub note: String,
}

/// What has happened to a keyspace's shards, oldest range first.
#[must_use]
pub fn story(keyspace: &str, before: &ShardLayoutStatus, now: &ShardLayoutStatus) -> Vec<Told> {
    let mut told = Vec::new();
    if before.shards.is_empty() || now.shards.is_empty() {
        return told;
    }
    if before.revisions.as_deref() == Some("Dense") && now.revisions.as_deref() == Some("Sequenced") {
        told.push(Told {
            reason: "RevisionsSequenced",
            subject: format!("keyspace {keyspace}"),
            note: format!(
                "keyspace {keyspace} takes its revisions from a sequencer now: they still rise, and a shard's have holes"
            ),
        });
    }
    if before.shards_not_listed > 0 || now.shards_not_listed > 0 {
        // Not every shard can be followed.
        if before.current_shards != now.current_shards {
            told.push(Told {
                reason: "ShardsChanged",
                subject: format!("keyspace {keyspace}"),
                note: format!(
                    "keyspace {keyspace} has {} shards, {} before",
                    now.current_shards, before.current_shards
                ),
            });
        }
        return told;
    }
    splits(keyspace, before, now, &mut told);
    merges(keyspace, before, now, &mut told);
    moves(keyspace, before, now, &mut told);
    if told.len() > MOST {
        let more = told.len() - MOST;
        told.truncate(MOST);
        told.push(Told {
            reason: "ShardsChanged",
            subject: format!("keyspace {keyspace}"),
            note: format!("{more} more changes of the shards of keyspace {keyspace}"),
        });
    }
    told
}

fn by_id(status: &ShardLayoutStatus) -> BTreeMap<i64, &ShardState> {
    status.shards.iter().map(|shard| (shard.id, shard)).collect()
}

fn splits(keyspace: &str, before: &ShardLayoutStatus, now: &ShardLayoutStatus, told: &mut Vec<Told>) {
    let old = by_id(before);
    let mut parent = None;
    for shard in &now.shards {
        if old.contains_key(&shard.id) {
            parent = Some(shard.id);
        } else if let Some(parent) = parent {
            told.push(Told {
                reason: "ShardSplit",
                subject: format!("shard {}", shard.id),
                note: format!(
                    "shard {} {} of keyspace {keyspace} was cut off shard {parent}",
                    shard.id, shard.range
                ),
            });
        }
    }
}

fn merges(keyspace: &str, before: &ShardLayoutStatus, now: &ShardLayoutStatus, told: &mut Vec<Told>) {
    let new = by_id(now);
    let mut heir = None;
    for shard in &before.shards {
        if new.contains_key(&shard.id) {
            heir = Some(shard.id);
        } else if let Some(heir) = heir {
            told.push(Told {
                reason: "ShardMerged",
                subject: format!("shard {}", shard.id),
                note: format!(
                    "shard {} {} of keyspace {keyspace} was joined to shard {heir}",
                    shard.id, shard.range
                ),
            });
        }
    }
}

fn moves(keyspace: &str, before: &ShardLayoutStatus, now: &ShardLayoutStatus, told: &mut Vec<Told>) {
    let moving = |status: &ShardLayoutStatus, shard: i64| {
        status
            .operations
            .iter()
            .any(|operation| operation.kind == "Move" && operation.shards.contains(&shard))
    };
    let old = by_id(before);
    for shard in &now.shards {
        let Some(known) = old.get(&shard.id) else {
            continue;
        };
        // Either a move was seen and is over, or it was too quick to be seen.
        let ended = moving(before, shard.id) || known.voters != shard.voters;
        if ended && !moving(now, shard.id) && !known.voters.is_empty() {
            told.push(Told {
                reason: "ShardMoved",
                subject: format!("shard {}", shard.id),
                note: format!(
                    "shard {} {} of keyspace {keyspace} is on {} now",
                    shard.id,
                    shard.range,
                    shard.voters.join(", ")
                ),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use althing_crds::LayoutOperation;

    use super::*;

    fn shard(id: i64, range: &str, voters: &[&str]) -> ShardState {
        ShardState {
            id,
            range: range.into(),
            voters: voters.iter().map(ToString::to_string).collect(),
            ..ShardState::default()
        }
    }

    fn status(shards: Vec<ShardState>) -> ShardLayoutStatus {
        ShardLayoutStatus {
            current_shards: i32::try_from(shards.len()).expect("few"),
            shards,
            ..ShardLayoutStatus::default()
        }
    }

    fn notes(before: &ShardLayoutStatus, now: &ShardLayoutStatus) -> Vec<String> {
        story("orders", before, now)
            .into_iter()
            .map(|told| format!("{}: {}", told.reason, told.note))
            .collect()
    }

    #[test]
    fn splits_merges_and_moves_are_told_by_what_the_shards_have_become() {
        let one = status(vec![shard(1, "[.., ..)", &["a", "b"])]);
        let three = status(vec![
            shard(1, "[.., /g)", &["a", "b"]),
            shard(5, "[/g, /m)", &["a", "b"]),
            shard(4, "[/m, ..)", &["a", "b"]),
        ]);
        let moved = status(vec![
            shard(1, "[.., /m)", &["a", "b"]),
            shard(4, "[/m, ..)", &["b", "c"]),
        ]);
        assert_eq!(
            notes(&one, &three),
            [
                "ShardSplit: shard 5 [/g, /m) of keyspace orders was cut off shard 1",
                "ShardSplit: shard 4 [/m, ..) of keyspace orders was cut off shard 1"
            ]
        );
        assert_eq!(
            notes(&three, &moved),
            [
                "ShardMerged: shard 5 [/g, /m) of keyspace orders was joined to shard 1",
                "ShardMoved: shard 4 [/m, ..) of keyspace orders is on b, c now"
            ]
        );
        assert_eq!(notes(&three, &three), Vec::<String>::new());
        assert_eq!(
            notes(&status(vec![]), &one),
            Vec::<String>::new(),
            "the first look has nothing to compare"
        );
    }

    #[test]
    fn a_move_is_told_when_it_is_over_and_not_before() {
        let moving = |mut of: ShardLayoutStatus| {
            of.operations = vec![LayoutOperation {
                id: 7,
                kind: "Move".into(),
                shards: vec![1],
                ..LayoutOperation::default()
            }];
            of
        };
        let old = status(vec![shard(1, "[.., ..)", &["a", "b"])]);
        let new = status(vec![shard(1, "[.., ..)", &["b", "c"])]);
        assert_eq!(notes(&old, &moving(new.clone())), Vec::<String>::new());
        assert_eq!(
            notes(&moving(new.clone()), &new),
            ["ShardMoved: shard 1 [.., ..) of keyspace orders is on b, c now"]
        );
    }

    #[test]
    fn what_cannot_be_followed_is_counted() {
        let mut few = status(vec![shard(1, "[.., ..)", &["a"])]);
        few.shards_not_listed = 10;
        few.current_shards = 200;
        let mut more = few.clone();
        more.current_shards = 201;
        assert_eq!(
            notes(&few, &more),
            ["ShardsChanged: keyspace orders has 201 shards, 200 before"]
        );
        let many = status((1..100).map(|id| shard(id, "r", &["a"])).collect());
        let told = notes(&status(vec![shard(1, "r", &["a"])]), &many);
        assert_eq!(told.len(), MOST + 1);
        assert_eq!(
            told[MOST],
            "ShardsChanged: 78 more changes of the shards of keyspace orders"
        );
    }
}
