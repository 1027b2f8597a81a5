//! Checks a document against a structural OpenAPI v3 schema, as the API server does: so that local mode refuses what
//! Kubernetes would refuse. Pure.
//!
//! It knows what our CRDs use: types, unknown and missing fields, enums, bounds on numbers, lengths and items. CEL
//! rules are not its business, they are kube's; `pattern` is left to the typed validation.

use serde_json::Value;

/// What is wrong with a field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Complaint {
    /// The field's path: `spec.storage.size`.
    pub(crate) field: String,
    /// What is wrong and what to write instead.
    pub(crate) message: String,
}

/// Deeper than any of our schemas; a bound for a walk that follows its input.
const MAX_DEPTH: usize = 64;

/// Every complaint about `value`, in the schema's order.
pub(crate) fn check(value: &Value, schema: &Value) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    walk("", value, schema, 0, &mut complaints);
    complaints
}

fn walk(path: &str, value: &Value, schema: &Value, depth: usize, complaints: &mut Vec<Complaint>) {
    let mut complain = |field: &str, message: String| {
        complaints.push(Complaint {
            field: field.to_owned(),
            message,
        });
    };
    if depth > MAX_DEPTH {
        return complain(path, "is nested too deeply".to_owned());
    }
    if value.is_null() {
        // The API server drops nulls it may drop; a null for a required field is caught as missing by its parent.
        return;
    }
    if let Some(expected) = schema["type"].as_str()
        && !is_of(value, expected)
    {
        return complain(path, format!("must be {}, not {}", article(expected), shown(value)));
    }
    if schema["x-kubernetes-int-or-string"] == true && !(value.is_i64() || value.is_string()) {
        return complain(
            path,
            format!("must be a whole number or a string, not {}", shown(value)),
        );
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().filter(|one| !one.is_null()).map(shown).collect();
        return complain(
            path,
            format!("must be one of {}, not {}", allowed.join(", "), shown(value)),
        );
    }
    for message in out_of_bounds(value, schema) {
        complain(path, message);
    }
    match value {
        Value::Object(fields) => {
            let properties = schema["properties"].as_object();
            let free_form = schema["x-kubernetes-preserve-unknown-fields"] == true;
            for required in schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if fields.get(required).is_none_or(Value::is_null) {
                    let description = properties
                        .and_then(|all| all[required]["description"].as_str())
                        .and_then(|text| text.split(['\n', '.']).next())
                        .map(|text| format!(" ({text})"))
                        .unwrap_or_default();
                    complaints.push(Complaint {
                        field: join(path, required),
                        message: format!("is missing; it must be given{description}"),
                    });
                }
            }
            for (name, inner) in fields {
                let field = join(path, name);
                match (
                    properties.and_then(|all| all.get(name)),
                    &schema["additionalProperties"],
                ) {
                    (Some(inner_schema), _) => walk(&field, inner, inner_schema, depth + 1, complaints),
                    (None, Value::Object(of_all)) => {
                        walk(&field, inner, &Value::Object(of_all.clone()), depth + 1, complaints);
                    }
                    (None, _) if free_form || properties.is_none() => {}
                    (None, _) => complaints.push(Complaint {
                        field,
                        message: unknown(name, properties),
                    }),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(
                    &format!("{path}[{index}]"),
                    item,
                    &schema["items"],
                    depth + 1,
                    complaints,
                );
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn is_of(value: &Value, expected: &str) -> bool {
    match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn article(expected: &str) -> &str {
    match expected {
        "object" => "a mapping (`field: value` lines)",
        "array" => "a list",
        "string" => "a string (quote it)",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        other => other,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

fn out_of_bounds(value: &Value, schema: &Value) -> Vec<String> {
    let bound = |name: &str| schema[name].as_f64();
    let length = |kind: &str, unit: &str, count: usize| {
        let at_least = bound(&format!("min{kind}")).filter(|min| (count as f64) < *min);
        let at_most = bound(&format!("max{kind}")).filter(|max| (count as f64) > *max);
        let low = at_least.map(|min| format!("must have at least {min} {unit}, not {count}"));
        low.or(at_most.map(|max| format!("must have at most {max} {unit}, not {count}")))
    };
    match value {
        Value::Number(number) => {
            let Some(number) = number.as_f64() else {
                return Vec::new();
            };
            let low = bound("minimum")
                .filter(|min| number < *min)
                .map(|min| format!("must be at least {min}, not {number}"));
            let high = bound("maximum")
                .filter(|max| number > *max)
                .map(|max| format!("must be at most {max}, not {number}"));
            low.into_iter().chain(high).collect()
        }
        Value::String(text) => length("Length", "characters", text.chars().count())
            .into_iter()
            .collect(),
        Value::Array(items) => length("Items", "items", items.len()).into_iter().collect(),
        Value::Null | Value::Bool(_) | Value::Object(_) => Vec::new(),
    }
}

fn unknown(name: &str, properties: Option<&serde_json::Map<String, Value>>) -> String {
    let known = || properties.into_iter().flat_map(|all| all.keys());
    let nearest = known()
        .map(|one| (distance(name, one), one))
        .filter(|(d, _)| *d <= 2)
        .min();
    match nearest {
        Some((_, near)) => format!("is not a field here; did you mean `{near}`?"),
        None => {
            let all: Vec<&str> = known().map(String::as_str).collect();
            format!("is not a field here; there are: {}", all.join(", "))
        }
    }
}

/// Levenshtein's distance, for "did you mean": upper and lower case count as the same.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_complaint_names_the_field_and_what_to_write() {
        let schema = json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["members", "storage"],
                    "properties": {
                        "members": {"type": "integer", "minimum": 1, "maximum": 9},
                        "paused": {"type": "boolean"},
                        "mode": {"type": "string", "enum": ["Auto", "Disabled", null]},
                        "name": {"type": "string", "maxLength": 3},
                        "keys": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "pod": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {}},
                        "port": {"x-kubernetes-int-or-string": true},
                        "storage": {"type": "object", "description": "Where data lies. More.", "properties": {"size": {"type": "string"}}},
                    },
                },
            },
        });
        let value = json!({"spec": {
            "members": 11, "member": 3, "nonsense": 1, "paused": "yes", "mode": "Off", "name": "long", "keys": ["a", 2, "c"],
            "labels": {"x": 1}, "pod": {"anything": ["goes"]}, "port": 1.5,
        }});
        let lines: Vec<String> = check(&value, &schema)
            .iter()
            .map(|c| format!("{} {}\n", c.field, c.message))
            .collect();
        expect![[r#"
            spec.storage is missing; it must be given (Where data lies)
            spec.keys must have at most 2 items, not 3
            spec.keys[1] must be a string (quote it), not 2
            spec.labels.x must be a string (quote it), not 1
            spec.member is not a field here; did you mean `members`?
            spec.members must be at most 9, not 11
            spec.mode must be one of "Auto", "Disabled", not "Off"
            spec.name must have at most 3 characters, not 4
            spec.nonsense is not a field here; there are: keys, labels, members, mode, name, paused, pod, port, storage
            spec.paused must be true or false, not "yes"
            spec.port must be a whole number or a string, not 1.5
        "#]]
        .assert_eq(&lines.concat());
        assert_eq!(
            check(&json!({"spec": {"members": 3, "storage": {}, "paused": null}}), &schema),
            []
        );
    }

    #[test]
    fn did_you_mean_counts_edits() {
        for (a, b, edits) in [
            ("member", "members", 1),
            ("Members", "members", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn bottomless_nesting_is_refused_rather_than_followed() {
        let mut value = json!(1);
        let mut schema = json!({"type": "integer"});
        for _ in 0..100 {
            value = json!([value]);
            schema = json!({"type": "array", "items": schema});
        }
        assert!(check(&value, &schema).iter().any(|c| c.message.contains("too deeply")));
    }
}
