//! A report as a picture: a bar for every number of shards, disk by disk. Pure.

use std::fmt::Write;

use super::super::picture::{begin, end, short, thousands};
use super::report::{Disk, Line, Report};

/// Where bars begin, and the longest bar.
const LEFT: f64 = 110.0;
const BAR_MAX: f64 = 400.0;
const HEAD: f64 = 44.0;
const ROW: f64 = 24.0;
const BAR: f64 = 19.0;
/// Above the first bar of a disk.
const TITLE: f64 = 30.0;
/// Readable on white and on black.
const COLOUR: &str = "#2f7de1";

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let disks = Disk::ALL.map(|disk| {
        report
            .lines
            .iter()
            .filter(move |line| line.disk == disk)
            .collect::<Vec<_>>()
    });
    let shown = disks.iter().filter(|lines| !lines.is_empty()).count() as f64;
    let height = HEAD + shown * TITLE + ROW * report.lines.len() as f64 + 40.0;
    let setting = &report.setting;
    let mut out = begin(
        height,
        "Puts a second against the number of shards",
        &format!(
            "Puts a second by shards, {} members, {} clients",
            setting.members, setting.clients
        ),
    );
    let longest = report
        .lines
        .iter()
        .map(|line| line.requests_per_second)
        .fold(1.0, f64::max);
    let mut top = HEAD;
    for (disk, lines) in Disk::ALL.into_iter().zip(disks) {
        if lines.is_empty() {
            continue;
        }
        let title = match disk {
            Disk::AsIs => "the disk as it is".to_owned(),
            Disk::Slow => format!("every sync takes {} ms longer", short(setting.delay_ms)),
        };
        let _ = writeln!(
            out,
            r#"<text x="16" y="{y}" font-weight="600">{title}</text>"#,
            y = top + 18.0
        );
        top += TITLE;
        for line in lines {
            row(&mut out, line, top, longest);
            top += ROW;
        }
    }
    let note = format!(
        "{cores} cores shared by all members and the load generator; {fs}; {key} B keys, {value} B values; medians of {rounds} interleaved rounds. CPU: all members, for one put.",
        cores = setting.cores,
        fs = setting.filesystem,
        key = setting.key_bytes,
        value = setting.value_bytes,
        rounds = setting.rounds,
    );
    end(&mut out, top + 20.0, &[note]);
    out
}

fn row(out: &mut String, line: &Line, top: f64, longest: f64) {
    let length = BAR_MAX * line.requests_per_second / longest;
    let plural = if line.shards == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        r#"<text x="16" y="{y:.1}">{shards} shard{plural}</text><rect x="{LEFT}" y="{top:.1}" width="{length:.1}" height="{BAR}" rx="2" fill="{COLOUR}"/><text x="{text:.1}" y="{y:.1}">{rate} <tspan font-size="11" opacity="0.75">p50 {p50} ms, p99 {p99} ms, {cpu:.0} µs CPU, {fsyncs} syncs</tspan></text>"#,
        y = top + 14.0,
        shards = line.shards,
        text = LEFT + length + 6.0,
        rate = thousands(line.requests_per_second),
        p50 = short(line.p50_ms),
        p99 = short(line.p99_ms),
        cpu = line.server_cpu_us_per_request,
        fsyncs = short(line.fsyncs_per_request),
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn bars_of_all_disks_share_one_scale_and_each_disk_has_its_title() {
        let picture = svg(&report());
        for width in ["400.0", "200.0", "160.0"] {
            assert!(picture.contains(&format!(r#"width="{width}""#)), "{width}: {picture}");
        }
        assert!(picture.contains("the disk as it is") && picture.contains("takes 5.00 ms longer"));
    }
}
