//! The manifest for Kubernetes: valid by its schemas, and with figures that fit the server that
//! it configures.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use serde_json::Value;

use super::{config, lint};
use crate::server::{Server, binary};

const MANIFEST: &str = include_str!("../../../../../packaging/kubernetes/switchboard.yaml");

/// Returns the object of this kind and name.
fn object(kind: &str, name: &str) -> Value {
    let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    let mut found = objects
        .into_iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("{kind} {name}"))
}

fn stateful_set() -> Value {
    object("StatefulSet", "switchboard")["spec"].clone()
}

fn container() -> Value {
    stateful_set()["template"]["spec"]["containers"][0].clone()
}

fn configuration() -> String {
    text(&object("ConfigMap", "switchboard")["data"]["switchboard.toml"]).to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("text, not {value}"))
}

/// Parses a quantity of Kubernetes, such as `2Gi`.
fn bytes(quantity: &Value) -> u64 {
    format!("{}B", text(quantity)).parse::<ByteSize>().unwrap().as_u64()
}

/// Returns the numbers of the container's ports, by name.
fn ports() -> BTreeMap<String, u64> {
    let ports = container()["ports"].as_array().unwrap().clone();
    let entry = |port: &Value| (text(&port["name"]).to_owned(), port["containerPort"].as_u64());
    ports.iter().map(entry).map(|(name, port)| (name, port.unwrap())).collect()
}

#[test]
fn it_is_valid_by_the_schemas_of_kubernetes() {
    lint("kubernetes-validate", &["--strict"], "packaging/kubernetes/switchboard.yaml");
}

#[test]
fn its_configuration_and_variables_pass_the_check() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("switchboard.toml");
    std::fs::write(&file, configuration()).unwrap();
    let mut check = binary();
    for variable in container()["env"].as_array().unwrap() {
        let value = match text(&variable["name"]) {
            "SWITCHBOARD_CONFIG" => file.to_str().unwrap(),
            _ => text(&variable["value"]),
        };
        check.env(text(&variable["name"]), value);
    }
    let output = check.args(["config", "check"]).current_dir(&directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn its_ports_are_those_of_the_configuration_and_its_probes_are_answered() {
    let config = config(&configuration());
    let metrics = config.metrics_listen.expect("metrics have a port of their own");
    let expected = [("http", config.listen.port()), ("metrics", metrics.port())];
    assert_eq!(ports(), expected.map(|(name, port)| (name.to_owned(), port.into())).into());
    let server = Server::start();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = container()[probe]["httpGet"].clone();
        assert_eq!(get["port"], "http", "{probe}");
        let request = format!("GET {} HTTP/1.1\r\nHost: pod\r\n\r\n", text(&get["path"]));
        assert!(server.raw(request.as_bytes()).starts_with("HTTP/1.1 200 "), "{probe}");
    }
}

#[test]
fn the_services_lead_to_ports_that_there_are_and_the_one_for_devices_shows_no_metrics() {
    for (service, names) in
        [("switchboard", vec!["http"]), ("switchboard-headless", vec!["http", "metrics"])]
    {
        let spec = &object("Service", service)["spec"];
        let targets = spec["ports"].as_array().unwrap();
        let targets: Vec<&str> = targets.iter().map(|port| text(&port["targetPort"])).collect();
        assert_eq!(targets, names);
        assert!(targets.iter().all(|target| ports().contains_key(*target)));
        assert_eq!(spec["selector"], stateful_set()["selector"]["matchLabels"]);
    }
    assert_eq!(stateful_set()["serviceName"], "switchboard-headless");
}

#[test]
fn a_pod_is_given_the_time_that_a_drain_takes() {
    let config = config(&configuration());
    let grace = stateful_set()["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
    let longest = config.drain + 2 * config.close_timeout;
    assert!(grace.unwrap() > longest.as_secs(), "{grace:?} for {longest:?}");
}

#[test]
fn the_log_fits_the_volume_and_the_queues_fit_the_memory() {
    let config = config(&configuration());
    let claim = &stateful_set()["volumeClaimTemplates"][0];
    let volume = bytes(&claim["spec"]["resources"]["requests"]["storage"]);
    // A twentieth stays free, and the file system itself takes some.
    assert!(config.store_max_bytes as u64 <= volume * 9 / 10);
    let out_queues = config.out_queues_max_bytes * 5 / 4;
    let queues = out_queues
        // As much again for the entries of messages on disk.
        + 2 * config.memory_messages_max_bytes
        + config.unfinished_messages_max_bytes
        + config.store_queue_max_bytes * 9 / 8;
    let limit = bytes(&container()["resources"]["limits"]["memory"]);
    assert!(queues as u64 <= limit * 3 / 4, "{queues} of {limit}");
}

#[test]
fn the_data_directory_and_the_configuration_are_where_they_are_mounted() {
    let mounts = container()["volumeMounts"].as_array().unwrap().clone();
    let path_of = |name: &str| mounts.iter().find(|mount| mount["name"] == name).unwrap().clone();
    for variable in container()["env"].as_array().unwrap() {
        let value = text(&variable["value"]);
        let mount = match text(&variable["name"]) {
            "SWITCHBOARD_DATA_DIR" => path_of("data"),
            _ => path_of("config"),
        };
        assert!(value.starts_with(text(&mount["mountPath"])), "{variable}");
    }
}

#[test]
fn a_pod_has_no_rights_that_it_does_not_need() {
    let pod = &stateful_set()["template"]["spec"];
    let (of_pod, of_container) = (&pod["securityContext"], &container()["securityContext"]);
    assert_eq!(of_pod["runAsNonRoot"], true);
    assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(of_container["allowPrivilegeEscalation"], false);
    assert_eq!(of_container["readOnlyRootFilesystem"], true);
    assert_eq!(of_container["capabilities"]["drop"][0], "ALL");
    let user = of_pod["runAsUser"].to_string();
    let containerfile = include_str!("../../../../../packaging/container/Containerfile");
    assert!(containerfile.contains(&format!("\nUSER {user}:{user}\n")));
    assert_eq!(
        (&pod["enableServiceLinks"], &pod["automountServiceAccountToken"]),
        (&false.into(), &false.into())
    );
}
