//! Who has a keyspace, and who a port, when several layouts of one cluster claim it: the oldest.

use super::Obstacle;

/// What a layout claims of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The layout's name.
    pub layout: String,
    /// When it was made, in seconds; the names decide between layouts of the same second.
    pub born: i64,
    /// Its keyspace.
    pub keyspace: String,
    /// Its port, if it claims one.
    pub port: Option<u16>,
}

/// Why this layout does not get what it claims, if so.
#[must_use]
pub fn taken(layout: &str, claims: &[Claim]) -> Option<Obstacle> {
    let mine = claims.iter().find(|claim| claim.layout == layout)?;
    let elders = || {
        claims
            .iter()
            .filter(|other| (other.born, &other.layout) < (mine.born, &mine.layout))
    };
    if let Some(elder) = elders().find(|elder| elder.keyspace == mine.keyspace) {
        return Some(Obstacle {
            reason: "KeyspaceTaken",
            message: format!(
                "keyspace {} has the older ShardLayout {} already; change that one, or give this one a keyspace of its own",
                mine.keyspace, elder.layout
            ),
            stuck: true,
        });
    }
    let port = mine.port?;
    elders().find(|elder| elder.port == Some(port)).map(|elder| Obstacle {
        reason: "PortTaken",
        message: format!(
            "spec.port {port} is the older ShardLayout {}'s already; write another port",
            elder.layout
        ),
        stuck: true,
    })
}

/// The ports that keyspaces have, by keyspace: what a Service shall offer.
#[must_use]
pub fn ports(claims: &[Claim]) -> Vec<(String, u16)> {
    let mut ports: Vec<(String, u16)> = claims
        .iter()
        .filter(|claim| taken(&claim.layout, claims).is_none())
        .filter_map(|claim| Some((claim.keyspace.clone(), claim.port?)))
        .collect();
    ports.sort_unstable();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(layout: &str, born: i64, keyspace: &str, port: Option<u16>) -> Claim {
        Claim {
            layout: layout.into(),
            born,
            keyspace: keyspace.into(),
            port,
        }
    }

    #[test]
    fn the_oldest_layout_has_the_keyspace_and_the_port() {
        let claims = [
            claim("b", 2, "default", None),
            claim("a", 3, "default", None),
            claim("c", 1, "audit", Some(2479)),
            claim("d", 1, "events", Some(2479)),
            claim("e", 9, "jobs", Some(2579)),
        ];
        let reason = |layout| taken(layout, &claims).map(|obstacle| obstacle.reason);
        assert_eq!(
            ["a", "b", "c", "d", "e", "z"].map(reason),
            [Some("KeyspaceTaken"), None, None, Some("PortTaken"), None, None]
        );
        assert_eq!(ports(&claims), [("audit".into(), 2479), ("jobs".into(), 2579)]);
    }

    #[test]
    fn who_is_refused_reads_whom_to_change() {
        let claims = [claim("old", 1, "audit", None), claim("new", 2, "audit", None)];
        let message = taken("new", &claims).expect("taken").message;
        assert!(
            message.contains("keyspace audit has the older ShardLayout old"),
            "{message}"
        );
    }
}
