//! What etcd's `benchmark` prints, as figures. Pure.

/// One run of the tool.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Run {
    /// Requests answered in a second.
    pub rate: f64,
    /// Median time of a request, in seconds.
    pub p50: f64,
    /// 99th percentile, in seconds.
    pub p99: f64,
}

/// Reads the tool's output.
///
/// # Errors
/// If a figure is missing, or if requests failed: a run with errors measures something else.
pub fn parse(output: &str) -> Result<Run, String> {
    succeeded(output)?;
    Ok(Run {
        rate: after(output, "Requests/sec:")?,
        p50: after(output, "50% in")?,
        p99: after(output, "99% in")?,
    })
}

/// Reads how long the slowest request took, in seconds; of a single one the tool prints no percentiles.
///
/// # Errors
/// As [`parse`].
pub fn slowest(output: &str) -> Result<f64, String> {
    succeeded(output)?;
    after(output, "Slowest:")
}

fn succeeded(output: &str) -> Result<(), String> {
    match output.split_once("Error distribution:") {
        Some((_, errors)) => Err(format!("requests failed: {}", errors.trim())),
        None => Ok(()),
    }
}

/// The number in the line that begins with this label.
fn after(output: &str, label: &str) -> Result<f64, String> {
    let number_in = |line: &str| line.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    output
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(label).and_then(number_in))
        .ok_or_else(|| format!("no line `{label}` with a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd's `benchmark` 3.6.8 against etcd 3.7.3, as it came.
    const RECORDED: &str = include_str!("recorded-put.txt");

    #[test]
    fn the_recorded_output_gives_its_figures() {
        let expected = Run {
            rate: 5_362.887_361_823_397,
            p50: 0.004_498_944,
            p99: 0.036_219_659,
        };
        assert_eq!(parse(RECORDED), Ok(expected));
        assert_eq!(slowest(RECORDED), Ok(0.049_494_068));
    }

    #[test]
    fn a_run_with_failed_requests_is_refused_with_their_words() {
        let failed = format!("{RECORDED}\nError distribution:\n  [3]\tetcdserver: no leader\n");
        assert!(parse(&failed).unwrap_err().contains("no leader"));
    }

    #[test]
    fn an_output_without_figures_says_what_is_missing() {
        assert!(
            parse("bench with linearizable range")
                .unwrap_err()
                .contains("Requests/sec")
        );
    }
}
