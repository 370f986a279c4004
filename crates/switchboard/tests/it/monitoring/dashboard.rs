//! The dashboard: every metric that it names exists, and Grafana can bind it to any data source.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::{FOLDER, Shown, words_behind};

/// Variables that Grafana itself provides.
const GRAFANAS_OWN: [&str; 1] = ["__rate_interval"];

fn dashboard() -> Value {
    let path = format!("{FOLDER}/switchboard-dashboard.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is a list in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    let text = value[key].as_str().unwrap_or_default();
    assert!(!text.is_empty(), "no {key} in {value}");
    text
}

#[test]
fn every_name_and_label_of_a_panel_is_shown_by_a_server() {
    let (shown, dashboard) = (Shown::start(), dashboard());
    for target in list(&dashboard, "panels").iter().flat_map(|panel| list(panel, "targets")) {
        let legend = words_behind(text(target, "legendFormat"), "{{");
        shown.has_all_of(text(target, "expr"), &legend);
    }
}

#[test]
fn every_panel_has_an_id_of_its_own_a_title_and_a_unit() {
    let dashboard = dashboard();
    let panels = list(&dashboard, "panels");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let titles: BTreeSet<&str> = panels.iter().map(|panel| text(panel, "title")).collect();
    assert_eq!(titles.len(), panels.len());
    for panel in panels {
        text(panel, "description");
        text(&panel["fieldConfig"]["defaults"], "unit");
        let refs: BTreeSet<&str> =
            list(panel, "targets").iter().map(|target| text(target, "refId")).collect();
        assert_eq!(refs.len(), list(panel, "targets").len(), "{panel}");
    }
}

#[test]
fn panels_do_not_overlap() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard, "panels") {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "a row has 24 columns: {panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} lies on another", panel["title"]);
        }
    }
}

/// A dashboard that names one particular data source is empty everywhere else.
#[test]
fn the_data_source_and_the_server_are_chosen_by_variables() {
    let dashboard = dashboard();
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let variables = list(&dashboard["templating"], "list");
    let named = |name: &str| variables.iter().find(|variable| variable["name"] == name);
    let datasource = named("datasource").expect("there is a variable for the data source");
    assert_eq!(
        (&datasource["type"], &datasource["query"]),
        (&json!("datasource"), &json!("prometheus"))
    );
    for panel in list(&dashboard, "panels") {
        assert_eq!(panel["datasource"], source, "{panel}");
        for target in list(panel, "targets") {
            assert_eq!(target["datasource"], source, "{target}");
            let expr = text(target, "expr");
            assert!(expr.contains("instance=~\"$instance\""), "it shows all servers: {expr}");
            for name in words_behind(expr, "$") {
                assert!(named(name).is_some() || GRAFANAS_OWN.contains(&name), "${name} in {expr}");
            }
        }
    }
}

#[test]
fn the_variables_ask_for_what_a_server_shows() {
    let (shown, dashboard) = (Shown::start(), dashboard());
    let variables = list(&dashboard["templating"], "list").iter();
    let queries: Vec<&str> = variables
        .filter(|variable| variable["type"] == "query")
        .map(|variable| text(&variable["query"], "query"))
        .collect();
    assert!(!queries.is_empty());
    for query in queries {
        let asked = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = asked.and_then(|asked| asked.rsplit_once(", ")).expect(query);
        shown.has_all_of(selector, &[label]);
    }
}
