//! A report as a picture: for every site a bar for each mode, as long as a read takes in the mean. Pure.

use std::fmt::Write;

use super::super::picture::{begin, end, escape, short};
use super::report::{ModeLine, Report};

/// Where bars begin, and the longest bar.
const LEFT: f64 = 150.0;
const BAR_MAX: f64 = 480.0;
const HEAD: f64 = 66.0;
const BAR: f64 = 15.0;
const ROW: f64 = 4.0 * (BAR + 2.0) + 16.0;
/// Colours that also differ in brightness; all readable on white and on black.
const COLOURS: [&str; 4] = ["#b9c0cc", "#7b8699", "#8fbcf0", "#2f7de1"];
/// Too short to see is too short to compare.
const SLIVER: f64 = 1.0;

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let sites = &report.setting.distances.sites;
    let height = HEAD + ROW * (sites.len() + 1) as f64 + 62.0;
    let mut out = begin(
        height,
        "Linearizable reads at five sites, mean latency",
        "Linearizable reads at five sites, mean latency in ms",
    );
    for (at, (line, colour)) in report.modes.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 130.0 * at as f64;
        let _ = writeln!(
            out,
            r#"<rect x="{x}" y="38" width="12" height="12" fill="{colour}"/><text x="{text}" y="48">{mode}</text>"#,
            text = x + 18.0,
            mode = escape(line.mode),
        );
    }
    let means = |site: Option<usize>| -> Vec<f64> {
        let of = |line: &ModeLine| site.map_or(line.mean_read_ms, |site| line.sites[site].reads.mean_ms);
        report.modes.iter().map(of).collect()
    };
    let all: Vec<Vec<f64>> = (0..sites.len()).map(|site| means(Some(site))).collect();
    // One scale for all: sites are compared with each other too.
    let longest = all.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut top = HEAD;
    for (site, name) in sites.iter().enumerate() {
        let note = match site {
            0 => "the leader's site".to_owned(),
            _ => format!("{} ms from the leader", report.setting.distances.rtt_ms[0][site]),
        };
        row(&mut out, name, &note, &all[site], longest, top);
        top += ROW;
    }
    let note = format!("{:.1}x and {:.0}x faster", report.faster, report.faster_own_keys);
    row(&mut out, "All sites", &note, &means(None), longest, top);
    let setting = &report.setting;
    let notes = [
        format!("Round trips of {}.", setting.distances.source),
        "Roster leases: revisions as in etcd, a read waits for every write under way; own keys: it waits for writes of its key only.".to_owned(),
        format!(
            "Five members on {cores} cores, {fs}, fsync on; {clients} clients at each site ask the member there; {writes} % writes; {keys} keys.",
            cores = setting.cores,
            fs = setting.filesystem,
            clients = setting.clients_per_site,
            writes = f64::from(setting.writes_per_mille) / 10.0,
            keys = setting.keys,
        ),
    ];
    end(&mut out, top + ROW + 8.0, &notes);
    out
}

fn row(out: &mut String, name: &str, note: &str, means: &[f64], longest: f64, top: f64) {
    let _ = writeln!(
        out,
        r#"<text x="16" y="{y}" font-weight="600">{name}</text><text x="16" y="{below}" font-size="11" opacity="0.75">{note}</text>"#,
        y = top + 15.0,
        below = top + 31.0,
        name = escape(name),
        note = escape(note),
    );
    for (at, (mean, colour)) in means.iter().zip(COLOURS).enumerate() {
        let y = top + at as f64 * (BAR + 2.0);
        let length = (BAR_MAX * mean / longest).max(SLIVER);
        let _ = writeln!(
            out,
            r#"<rect x="{LEFT}" y="{y:.1}" width="{length:.1}" height="{BAR}" rx="2" fill="{colour}"/><text x="{text:.1}" y="{base:.1}" font-size="12">{mean}</text>"#,
            text = LEFT + length + 6.0,
            base = y + 12.0,
            mean = short(*mean),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn bars_of_all_sites_share_one_scale() {
        let picture = svg(&report(8.0, 1000, 400, true));
        // 100 ms, 80 ms and 8 ms.
        for width in [r#"width="480.0""#, r#"width="384.0""#, r#"width="38.4""#] {
            assert!(picture.contains(width), "{width} is missing in {picture}");
        }
        assert!(picture.contains("2.0x and 10x faster"), "{picture}");
    }

    #[test]
    fn a_bar_can_be_seen_however_short_it_is() {
        let picture = svg(&report(0.001, 1000, 400, true));
        assert!(picture.contains(r#"width="1.0""#), "{picture}");
    }
}
