//! As much of `PromQL` as is needed to see which series a query reads. Prometheus itself judges whether it is right.

/// The selectors of a query, without range and modifiers, in order: `up{job="x"}`, `y`.
///
/// Strings must not hold braces or brackets, which labels' values here never do.
pub fn selectors(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = after(&rest[1..], '"');
        } else if first == '[' || first == '{' {
            // A range, or a selector that begins without a name; the rules and panels have none of the latter.
            rest = after(rest, if first == '[' { ']' } else { '}' });
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                .unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            rest = tail;
            let next = tail.trim_start();
            if GROUPING.contains(&word) {
                // Its labels are no series; `group_left` may come without any.
                rest = if next.starts_with('(') { after(tail, ')') } else { tail };
            } else if next.starts_with('{') {
                let end = next.find('}').map_or(next.len(), |at| at + 1);
                found.push(format!("{word}{}", &next[..end]));
                rest = &next[end..];
            } else if !next.starts_with('(')
                && !OPERATORS.contains(&word)
                && !GROUPING.iter().any(|word| next.starts_with(word))
            {
                found.push(word.to_owned());
            }
        } else if first.is_ascii_digit() {
            // A number with its unit, such as 5m.
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// The name of a selector's metric.
pub fn metric(selector: &str) -> &str {
    selector.split('{').next().unwrap_or(selector)
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "Inf", "NaN"];

fn after(text: &str, end: char) -> &str {
    text.find(end).map_or("", |at| &text[at + end.len_utf8()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_functions_operators_and_numbers_are_no_series() {
        let query = r#"label_replace(max by (namespace, cluster) (up{job="a b"}) == 0, "shard", "(all)", "", "")
            or sum(rate(x_total[5m])) by (le) > 1e3 and on(pod) group_left a:b unless bool y offset 5m / 0.5"#;
        assert_eq!(selectors(query), [r#"up{job="a b"}"#, "x_total", "a:b", "y"]);
    }

    #[test]
    fn an_aggregation_with_its_grouping_first_is_no_series() {
        assert_eq!(selectors("count by (namespace) (z == 1)"), ["z"]);
        assert_eq!(selectors("sum without(pod)(z)"), ["z"]);
    }

    #[test]
    fn a_selector_is_named_by_its_metric() {
        assert_eq!(metric(r#"up{job="x"}"#), "up");
        assert_eq!(metric("up"), "up");
    }
}
