//! The alert rules: promtool accepts them and their tests, and every metric that they name
//! exists.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use super::{FOLDER, Shown, promtool, words_behind};

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn rules() -> Vec<Rule> {
    let text = fs::read_to_string(format!("{FOLDER}/alerts.yml")).unwrap();
    let rules: Rules = serde_saphyr::from_str(&text).unwrap();
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    promtool("check rules alerts.yml", "");
    promtool("test rules alerts_test.yml", "");
}

#[test]
fn every_name_and_label_of_an_alert_is_shown_by_a_server() {
    let shown = Shown::start();
    for rule in rules() {
        let texts: Vec<&str> =
            rule.annotations.values().flat_map(|text| words_behind(text, "$labels.")).collect();
        shown.has_all_of(&rule.expr, &texts);
    }
}

/// The person on call needs to know how bad it is and what to do.
#[test]
fn every_alert_says_what_users_notice_and_what_to_do() {
    for Rule { alert, labels, annotations, .. } in rules() {
        assert!(["critical", "warning"].contains(&labels["severity"].as_str()), "{alert}");
        assert!(annotations["summary"].contains("$labels.instance"), "{alert}");
        let description = annotations["description"].strip_prefix("Users: ");
        let (users, action) = description.and_then(|text| text.split_once(" Do: ")).expect(&alert);
        assert!(users.ends_with('.') && action.ends_with('.'), "{alert}");
    }
}

#[test]
fn every_alert_is_seen_to_fire_and_not_to_fire() {
    let tests = fs::read_to_string(format!("{FOLDER}/alerts_test.yml")).unwrap();
    for Rule { alert, .. } in rules() {
        assert!(tests.contains(&format!("{{alertname=\"{alert}\"}}")), "{alert} is not tested");
    }
}
