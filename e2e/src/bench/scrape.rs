//! What a member of ours says on its metrics page. Pure.

use std::collections::BTreeMap;

/// One reading of a page: every series by its name and labels, as they are written.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads the text; lines that are no series are left out.
    pub fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    /// A series, as `althing_groups` or `althing_raft_leader{shard="1"}`; one that is not there has counted nothing.
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// A series of one shard that has no further labels.
    pub fn of_shard(&self, name: &str, shard: &str) -> f64 {
        self.get(&format!("{name}{{shard=\"{shard}\"}}"))
    }

    /// The shards of a series that has no further labels.
    pub fn shards<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter_map(move |series| {
            let labels = series.strip_prefix(name)?.strip_prefix("{shard=\"")?;
            labels.strip_suffix("\"}").filter(|shard| !shard.contains('"'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_shard_and_what_is_not_there_is_nothing() {
        let page = Scrape::parse(
            "# HELP althing_groups Shards.\nalthing_groups 7\nalthing_raft_leader{shard=\"1\"} 1\n\
             althing_raft_leader{shard=\"other\"} 4\nalthing_raft_peer_lag{shard=\"1\",peer=\"aa\"} 2\n# EOF\n",
        );
        assert_eq!((page.get("althing_groups"), page.get("althing_nothing")), (7.0, 0.0));
        assert_eq!(page.of_shard("althing_raft_leader", "other"), 4.0);
        let shards: Vec<_> = page.shards("althing_raft_leader").collect();
        assert_eq!(shards, ["1", "other"]);
        assert_eq!(page.shards("althing_raft_peer_lag").count(), 0);
    }
}
