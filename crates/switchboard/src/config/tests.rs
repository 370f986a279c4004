//! Layers in, configuration or errors out; no test touches the process's variables or directory.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::keys::{KEYS, RULES, Reload, retired};
use super::*;
use crate::files::Occasion;

fn toml(text: &str) -> Layer {
    Layer::from_toml(Path::new("switchboard.toml"), text)
}

fn cfg(text: &str) -> Layer {
    Layer::from_cfg(Path::new("server.cfg"), text)
}

fn vars(pairs: &[(&str, &str)]) -> Layer {
    Layer::from_variables(os_pairs(pairs))
}

fn os_pairs(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag { name: name.to_owned(), key: key.to_owned(), value: value.to_owned() }
}

fn flags(flags: &[(&str, &str, &str)]) -> Layer {
    Layer::from_flags(flags.iter().map(|(name, key, value)| flag(name, key, value)))
}

#[track_caller]
fn good(layers: impl IntoIterator<Item = Layer>) -> Config {
    resolve(layers).unwrap_or_else(|errors| panic!("{errors}")).config
}

/// Returns the errors, one line each.
#[track_caller]
fn bad(layers: impl IntoIterator<Item = Layer>) -> Vec<String> {
    let ConfigErrors(errors) = resolve(layers).expect_err("the configuration has errors");
    errors.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn bad_value(text: &str, expected: &str) {
    assert_eq!(bad([toml(text)]), [format!("switchboard.toml:1: {expected}")], "{text}");
}

/// Returns `switchboard.toml` with every commented setting enabled.
fn uncommented_default() -> String {
    DEFAULT_TOML
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_default_file_as_it_stands_sets_nothing() {
    assert_eq!(toml(DEFAULT_TOML).settings.len(), 0);
}

#[test]
fn the_default_file_uncommented_is_the_default() {
    assert_eq!(good([toml(&uncommented_default())]), Config::default());
}

#[test]
fn the_default_file_lists_every_key_in_order() {
    let document = toml_edit::Document::parse(uncommented_default()).unwrap();
    let listed: Vec<&str> = document.iter().map(|(name, _)| name).collect();
    let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(listed, known);
}

#[test]
fn the_default_file_describes_every_key() {
    let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
    for key in KEYS {
        let setting = format!("#{} = ", key.name);
        let at = lines.iter().position(|line| line.starts_with(&setting)).expect(key.name);
        // A pair such as tls_cert and tls_key may share a paragraph.
        let described = lines[..at].iter().rev().find(|line| !line.contains(" = "));
        assert!(described.is_some_and(|line| line.starts_with("# ")), "{} is bare", key.name);
    }
}

#[test]
fn every_row_reads_what_it_shows() {
    let shown: Vec<String> = KEYS
        .iter()
        .map(|key| format!("{} = {}", key.name, (key.show)(&Config::default())))
        .collect();
    assert_eq!(good([toml(&shown.join("\n"))]), Config::default());
}

#[test]
fn every_key_has_a_variable_and_a_flag() {
    for key in KEYS {
        let value: toml_edit::Value = (key.show)(&Config::default()).parse().unwrap();
        let text = match &value {
            toml_edit::Value::Array(_) => String::new(),
            toml_edit::Value::String(text) => text.value().clone(),
            other => other.to_string(),
        };
        let variable = format!("SWITCHBOARD_{}", key.name.to_uppercase());
        assert_eq!(good([vars(&[(&variable, &text)])]), Config::default(), "{variable}");
        assert_eq!(good([flags(&[("--set", key.name, &text)])]), Config::default());
    }
}

#[test]
fn rules_speak_of_keys() {
    for name in RULES.iter().flat_map(|rule| rule.keys) {
        assert!(KEYS.iter().any(|key| key.name == *name), "{name}");
    }
}

#[test]
fn a_retired_key_is_a_mistake_that_says_what_to_do() {
    assert_eq!(
        bad([
            toml("push_stall_timeout = \"10s\""),
            vars(&[("SWITCHBOARD_DEVICE_LIST_MAX", "0")]),
            flags(&[("--set", "auth-leeway", "1s")]),
        ]),
        [
            "switchboard.toml:1: push_stall_timeout: is no longer a key; set \
             out_queue_stall_timeout instead: it is for every connection",
            "SWITCHBOARD_DEVICE_LIST_MAX: device_list_max: is no longer a key; remove it: a welcome \
             lists 256 devices; list_devices = \"none\" hides them from each other",
            "--set: auth-leeway: is no longer a key; remove it: the clocks of issuers may differ by \
             30 s",
        ]
    );
}

#[test]
fn no_retired_key_is_a_key() {
    for key in KEYS {
        assert_eq!(retired(key.name), None, "{}", key.name);
    }
}

#[test]
fn later_layers_win() {
    let layers = || {
        vec![
            cfg("[Settings]\nport = 1001\n"),
            toml("port = 1002"),
            vars(&[("SWITCHBOARD_PORT", "1003")]),
            flags(&[("--port", "port", "1004")]),
        ]
    };
    for (count, port) in [(0, 8080), (1, 1001), (2, 1002), (3, 1003), (4, 1004)] {
        let config = good(layers().into_iter().take(count));
        assert_eq!(config.listen, format!("0.0.0.0:{port}").parse().unwrap());
    }
}

#[test]
fn port_keeps_the_address_of_an_earlier_layer() {
    let config = good([toml("listen = \"127.0.0.1:9000\""), vars(&[("SWITCHBOARD_PORT", "9001")])]);
    assert_eq!(config.listen, "127.0.0.1:9001".parse().unwrap());
}

#[test]
fn listen_overrides_the_port_of_an_earlier_layer() {
    let listen = flags(&[("--listen", "listen", "127.0.0.1:9000")]);
    assert_eq!(good([toml("port = 9001"), listen]).listen, "127.0.0.1:9000".parse().unwrap());
}

#[test]
fn port_wins_over_listen_in_one_layer_however_ordered() {
    for text in ["listen = \"[::]:1\"\nport = 2", "port = 2\nlisten = \"[::]:1\""] {
        assert_eq!(good([toml(text)]).listen, "[::]:2".parse().unwrap());
    }
}

#[test]
fn server_cfg_is_read_as_the_original_read_it() {
    let written = [
        "[Settings]\nport = 9000\n",
        "[Settings]\nport=9000",
        "[Settings]\r\nPort: 9000\r\n",
        "; a comment\n[Settings]\n# another\nport = 9000\n",
    ];
    for text in written {
        assert_eq!(good([cfg(text)]).listen.port(), 9000, "{text:?}");
    }
}

#[test]
fn a_port_in_server_cfg_that_is_none_is_an_error() {
    assert_eq!(
        bad([cfg("[Settings]\nport = http\nhost = ::\n")]),
        ["server.cfg:2: port: got \"http\"; give a whole number from 0 to 65535"]
    );
}

/// The original ignored unknown keys, so existing files contain some.
#[test]
fn what_the_original_ignored_in_server_cfg_is_ignored_with_a_warning() {
    let loaded =
        resolve([cfg("[Settings]\nlocalhost = 1\nport = 9000\n[Other]\nport = 1\n")]).unwrap();
    assert_eq!(loaded.config.listen.port(), 9000);
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    let only = "is ignored; only `port` in `[Settings]` is read; use switchboard.toml for more";
    assert_eq!(
        warnings,
        [format!("server.cfg:2: localhost: {only}"), format!("server.cfg:3: port: {only}")]
    );
    let warnings = resolve([cfg("")]).unwrap().warnings;
    assert!(
        warnings[0].to_string().starts_with("server.cfg: port: missing; write"),
        "{warnings:?}"
    );
}

#[test]
fn all_errors_of_all_layers_are_reported_together() {
    let errors = resolve([
        cfg("[Settings]\nport = 70000"),
        toml("shards = 4\n\nmax_conections = 5\ndrain = 5\n"),
        vars(&[("SWITCHBOARD_COMPRESSION", "maybe"), ("SWITCHBOARD_TLS_CERTT", "x")]),
        flags(&[("--port", "port", "-1"), ("--set", "nonsense", "1")]),
    ])
    .unwrap_err();
    assert_eq!(
        errors.to_string(),
        "7 errors in the configuration:
  server.cfg:2: port: got \"70000\"; give a whole number from 0 to 65535
  switchboard.toml:3: max_conections: unknown key; did you mean max_connections?
  switchboard.toml:4: drain: got 5; give a time from 0s to 1h, such as \"10s\" or \"1m 30s\"
  SWITCHBOARD_TLS_CERTT: tls_certt: unknown key; did you mean SWITCHBOARD_TLS_CERT?
  SWITCHBOARD_COMPRESSION: compression: got \"maybe\"; give true or false
  --set: nonsense: unknown key; `switchboard config print` lists every key
  --port: port: got \"-1\"; give a whole number from 0 to 65535"
    );
}

#[test]
fn one_error_is_one() {
    let errors = resolve([toml("shards = -1")]).unwrap_err();
    assert!(errors.to_string().starts_with("1 error in the configuration:\n  "));
}

#[test]
fn an_error_is_reported_even_where_a_later_layer_sets_the_key() {
    assert_eq!(bad([toml("port = \"x\""), flags(&[("--port", "port", "1")])]).len(), 1);
}

#[test]
fn toml_that_is_none_is_reported_with_its_line() {
    let errors = bad([toml("shards = 1\nlisten = \n"), vars(&[("SWITCHBOARD_PORT", "x")])]);
    assert!(errors[0].starts_with("switchboard.toml:2: not valid TOML: "), "{errors:?}");
    assert_eq!(errors.len(), 2);
}

#[test]
fn a_key_set_twice_in_toml_is_an_error() {
    let errors = bad([toml("shards = 1\nshards = 2\n")]);
    assert!(errors[0].starts_with("switchboard.toml:2: not valid TOML: "), "{errors:?}");
}

#[test]
fn sections_are_refused() {
    assert_eq!(
        bad([toml("shards = 1\n[limits]\nmax_connections = 5\n")]),
        ["switchboard.toml:2: limits: is a section; write keys without sections: `key = value`, \
          one a line"]
    );
}

#[test]
fn counts_stay_within_their_bounds() {
    assert_eq!(good([toml("shards = 1024")]).shards, 1024);
    assert_eq!(
        good([vars(&[("SWITCHBOARD_MAX_CONNECTIONS", " 50_000 ")])]).max_connections,
        50_000
    );
    for value in ["1025", "-1", "1.5", "true", "\"four\"", "[\"1\"]", "99999999999999999999"] {
        let errors = bad([toml(&format!("shards = {value}"))]);
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
    bad_value(
        "max_connections = 0",
        "max_connections: got 0; give a whole number from 1 to 10000000",
    );
}

#[test]
fn sizes_are_numbers_or_text_with_a_unit() {
    let sizes = [("65536", 65536), ("\"64 KiB\"", 65536), ("\"1MiB\"", 1 << 20), ("\"2kB\"", 2000)];
    for (written, bytes) in sizes {
        let config = good([toml(&format!("max_message_bytes = {written}"))]);
        assert_eq!(config.max_message_bytes, bytes, "{written}");
    }
    bad_value(
        "max_message_bytes = 124",
        "max_message_bytes: got 124; give a size from 125 B to 256 MiB, such as 65536 or \"64 KiB\"",
    );
    assert_eq!(bad([toml("max_message_bytes = \"1 GiB\"")]).len(), 1);
    assert_eq!(bad([toml("max_message_bytes = \"much\"")]).len(), 1);
}

#[test]
fn times_are_text_with_a_unit() {
    for (written, ms) in [("10s", 10_000), ("1m 30s", 90_000), ("250ms", 250), ("1h", 3_600_000)] {
        let config = good([toml(&format!("drain = \"{written}\""))]);
        assert_eq!(config.drain, Duration::from_millis(ms), "{written}");
    }
    bad_value(
        "ping_interval = \"0s\"",
        "ping_interval: got \"0s\"; give a time from 1ms to 1day, such as \"10s\" or \"1m 30s\"",
    );
    bad_value(
        "drain = \"2h\"",
        "drain: got \"2h\"; give a time from 0s to 1h, such as \"10s\" or \"1m 30s\"",
    );
}

#[test]
fn lists_are_arrays_or_text_with_commas() {
    let nets: Vec<IpNet> =
        ["10.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap()).into_iter().collect();
    for layer in [
        toml("trusted_proxies = [\"10.1.2.3/8\", \"::1\"]"),
        toml("trusted_proxies = \"10.0.0.0/8,::1\""),
        vars(&[("SWITCHBOARD_TRUSTED_PROXIES", "10.0.0.0/8, ::1/128")]),
    ] {
        assert_eq!(good([layer]).trusted_proxies, nets);
    }
    bad_value(
        "trusted_proxies = [\"nowhere\"]",
        "trusted_proxies: got [\"nowhere\"]; give a list of networks, \
         such as [\"10.0.0.0/8\", \"::1\"] or \"10.0.0.0/8, ::1\"",
    );
}

#[test]
fn an_empty_variable_empties_a_list_and_unsets_a_file() {
    let below = toml("allowed_origins = [\"https://a.org\"]\ntls_cert = \"c\"\ntls_key = \"k\"");
    let above = vars(&[
        ("SWITCHBOARD_ALLOWED_ORIGINS", ""),
        ("SWITCHBOARD_TLS_CERT", ""),
        ("SWITCHBOARD_TLS_KEY", ""),
    ]);
    assert_eq!(good([below, above]), Config::default());
}

#[test]
fn origins_are_bare_and_lower_case() {
    let config = good([toml("allowed_origins = [\"https://Example.org:8443\", \"null\"]")]);
    assert_eq!(config.allowed_origins, ["https://example.org:8443", "null"]);
    for origin in ["example.org", "https://example.org/", "https://", "https://*.org", ""] {
        assert_eq!(bad([toml(&format!("allowed_origins = [\"{origin}\"]"))]).len(), 1, "{origin}");
    }
}

#[test]
fn log_levels_are_levels_or_filters() {
    for level in ["off", "DEBUG", "info,switchboard=trace", "switchboard::shard=debug"] {
        assert_eq!(good([vars(&[("SWITCHBOARD_LOG_LEVEL", level)])]).log_level, level);
    }
    for level in ["", "inof", "info,loud", "switchboard=loud"] {
        assert_eq!(bad([vars(&[("SWITCHBOARD_LOG_LEVEL", level)])]).len(), 1, "{level}");
    }
}

#[test]
fn log_formats_are_named() {
    assert_eq!(good([toml("log_format = \"json\"")]).log_format, LogFormat::Json);
    bad_value("log_format = \"xml\"", "log_format: got \"xml\"; give auto, text or json");
}

#[test]
fn a_certificate_needs_its_key() {
    assert_eq!(
        bad([toml("tls_key = \"key.pem\"")]),
        ["switchboard.toml:1: tls_key: does not go together: tls_cert = \"\" (default), \
          tls_key = \"key.pem\" (switchboard.toml:1); set both, or neither"]
    );
    let both = [toml("tls_key = \"key.pem\""), flags(&[("--tls-cert", "tls_cert", "cert.pem")])];
    assert_eq!(good(both).tls_cert.as_deref(), Some(Path::new("cert.pem")));
}

#[test]
fn data_may_be_kept_nowhere() {
    assert_eq!(
        good([toml("data_dir = \"/var/lib/a\"")]).data_dir.as_deref(),
        Some(Path::new("/var/lib/a"))
    );
    assert_eq!(good([flags(&[("--memory", "data_dir", "")])]).data_dir, None);
}

#[test]
fn tokens_are_asked_for_or_not() {
    assert_eq!(good([toml("auth = \"token\"")]).auth, Auth::Token);
    bad_value("auth = \"none\"", "auth: got \"none\"; give open or token");
}

#[test]
fn tokens_without_any_key_would_let_nobody_in() {
    assert_eq!(
        bad([toml("auth = \"token\"\ndata_dir = \"\"")]),
        ["switchboard.toml:1: auth: does not go together: auth = \"token\" (switchboard.toml:1), \
          data_dir = \"\" (switchboard.toml:2), auth_hs256_secret_file = \"\" (default), \
          auth_public_keys = [] (default), auth_jwks = \"\" (default); keep the server's own key in a \
          data_dir, or name other keys; else no token exists that lets a device in"]
    );
    for key in
        ["auth_hs256_secret_file = \"s\"", "auth_public_keys = [\"k.pem\"]", "auth_jwks = \"j\""]
    {
        good([toml(&format!("auth = \"token\"\ndata_dir = \"\"\n{key}"))]);
    }
}

#[test]
fn key_files_are_a_list() {
    for layer in [
        toml("auth_public_keys = [\"a.pem\", \"b.pem\"]"),
        vars(&[("SWITCHBOARD_AUTH_PUBLIC_KEYS", "a.pem, b.pem")]),
    ] {
        assert_eq!(good([layer]).auth_public_keys, [Path::new("a.pem"), Path::new("b.pem")]);
    }
    assert_eq!(bad([toml("auth_public_keys = [\"\"]")]).len(), 1);
}

#[test]
fn a_key_set_comes_from_a_file_or_by_a_way_that_nobody_can_change() {
    let set = |text: &str| good([vars(&[("SWITCHBOARD_AUTH_JWKS", text)])]).auth_jwks;
    assert_eq!(set("keys/jwks.json"), Some(KeySet::File("keys/jwks.json".into())));
    for url in [
        "https://example.org/jwks.json?v=1",
        "https://example.org:8443/",
        "http://localhost:9000/jwks",
        "http://127.0.0.1/jwks",
        "http://[::1]:80/jwks",
    ] {
        assert_eq!(set(url), Some(KeySet::Url(url.parse().unwrap())));
        let printed = resolve([vars(&[("SWITCHBOARD_AUTH_JWKS", url)])]).unwrap().to_toml();
        assert_eq!(good([toml(&printed)]).auth_jwks, set(url));
    }
    for url in [
        "http://example.org/jwks",
        "http://localhost.example.org/",
        "http://127.0.0.1.example.org/",
        "http://10.0.0.1/",
        "https://me:secret@example.org/",
        "https:///jwks",
        "ftp://localhost/",
        "://",
    ] {
        assert_eq!(bad([vars(&[("SWITCHBOARD_AUTH_JWKS", url)])]).len(), 1, "{url}");
    }
}

#[test]
fn idle_timeout_must_outlast_the_ping() {
    assert_eq!(
        bad([vars(&[("SWITCHBOARD_IDLE_TIMEOUT", "25s")])]),
        ["SWITCHBOARD_IDLE_TIMEOUT: idle_timeout: does not go together: \
          idle_timeout = \"25s\" (SWITCHBOARD_IDLE_TIMEOUT), ping_interval = \"25s\" (default); \
          make idle_timeout longer than ping_interval, or every quiet connection is closed"]
    );
}

#[test]
fn a_rate_limit_needs_a_burst_and_no_limit_needs_none() {
    assert_eq!(bad([toml("rate_limit_messages_per_s = 5\nrate_limit_burst = 0")]).len(), 1);
    assert_eq!(good([toml("rate_limit_burst = 0")]).rate_limit_burst, 0);
}

#[test]
fn the_largest_message_fits_between_shards() {
    assert_eq!(bad([toml("max_message_bytes = \"16 MiB\"")]).len(), 1);
    good([toml("max_message_bytes = \"16 MiB\"\nshard_queue_max_bytes = \"16 MiB\"")]);
}

#[test]
fn a_rule_is_silent_where_one_of_its_keys_was_misread() {
    assert_eq!(bad([toml("idle_timeout = \"1s\"\nping_interval = 1")]).len(), 1);
}

#[test]
fn other_variables_are_left_alone() {
    let others = [
        ("PATH", "/bin"),
        ("SWITCHBOARD_URL", "ws://h"),
        ("SWITCHBOARD_TOKEN", "t"),
        ("SWITCHBOARD_CONFIG", "f"),
    ];
    assert_eq!(good([vars(&others)]), Config::default());
}

#[test]
fn a_variable_in_lower_case_is_unknown() {
    assert_eq!(
        bad([vars(&[("SWITCHBOARD_port", "1")])]),
        ["SWITCHBOARD_port: SWITCHBOARD_port: unknown key; did you mean SWITCHBOARD_PORT?"]
    );
}

#[test]
fn variables_that_kubernetes_sets_are_explained() {
    let errors = bad([vars(&[
        ("SWITCHBOARD_PORT", "tcp://10.0.0.1:8080"),
        ("SWITCHBOARD_SERVICE_HOST", "10.0.0.1"),
    ])]);
    assert!(errors.iter().all(|line| line.contains("enableServiceLinks: false")), "{errors:?}");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_an_error() {
    use std::os::unix::ffi::OsStringExt;
    let value = OsString::from_vec(vec![0xff]);
    let layer = Layer::from_variables([(OsString::from("SWITCHBOARD_TLS_CERT"), value)]);
    assert_eq!(
        bad([layer]),
        ["SWITCHBOARD_TLS_CERT: tls_cert: the value is not UTF-8; give it as UTF-8 text"]
    );
}

#[test]
fn what_is_printed_loads_to_the_same_and_names_each_origin() {
    let loaded = resolve([
        cfg("[Settings]\nport = 9000"),
        toml("\ntrusted_proxies = [\"::1\"]\ndrain = \"1500ms\"\nmax_message_bytes = 1500"),
        vars(&[("SWITCHBOARD_TLS_CERT", "a\"b\\c"), ("SWITCHBOARD_LOG_FORMAT", "text")]),
        flags(&[("--tls-key", "tls_key", "k")]),
    ])
    .unwrap();
    let printed = loaded.to_toml();
    assert_eq!(good([toml(&printed)]), loaded.config);
    for line in [
        "listen = \"0.0.0.0:9000\"  # server.cfg:2",
        "shards = 0",
        "trusted_proxies = [\"::1/128\"]  # switchboard.toml:2",
        "log_format = \"text\"  # SWITCHBOARD_LOG_FORMAT",
        "tls_key = \"k\"  # --tls-key",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} not in\n{printed}");
    }
}

/// Creates a directory with the given files.
fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn both_files_of_the_directory_are_read() {
    let dir =
        dir_with(&[("server.cfg", "[Settings]\nport=9000"), ("switchboard.toml", "shards=2")]);
    let config = load(dir.path(), None, [], [], Occasion::Start).unwrap().config;
    assert_eq!((config.listen.port(), config.shards), (9000, 2));
}

#[test]
fn a_named_file_is_the_only_one_read() {
    let dir = dir_with(&[
        ("server.cfg", "[Settings]\nport=9000"),
        ("switchboard.toml", "shards=2"),
        ("other.cfg", "[Settings]\nport=9001"),
        ("other.toml", "port=9002"),
    ]);
    for (name, port) in [("other.cfg", 9001), ("other.toml", 9002)] {
        let file = dir.path().join(name);
        let by_flag = load(dir.path(), Some(&file), [], [], Occasion::Start).unwrap().config;
        let variable = ("SWITCHBOARD_CONFIG".into(), file.into_os_string());
        let by_variable = load(dir.path(), None, [variable], [], Occasion::Start).unwrap().config;
        assert_eq!((by_flag.listen.port(), by_flag.shards), (port, 0));
        assert_eq!(by_variable, by_flag);
    }
}

#[test]
fn a_named_file_must_exist() {
    let dir = dir_with(&[]);
    let file = Path::new("/nonexistent/switchboard.toml");
    let ConfigErrors(errors) = load(dir.path(), Some(file), [], [], Occasion::Start).unwrap_err();
    assert_eq!(errors.len(), 1);
    let line = errors[0].to_string();
    assert!(line.starts_with("--config: cannot read /nonexistent/switchboard.toml: "), "{line}");
}

/// `/dev/zero` as a configuration once filled the memory.
#[test]
fn a_file_without_end_is_not_read() {
    let file = Path::new("/dev/zero");
    let loaded = load(Path::new(""), Some(file), [], [], Occasion::Start);
    let ConfigErrors(errors) = loaded.unwrap_err();
    assert!(errors[0].to_string().contains("it is longer than 1024 KiB"), "{errors:?}");
}

#[test]
fn a_file_that_cannot_be_read_does_not_hide_other_errors() {
    let dir = dir_with(&[]);
    std::fs::create_dir(dir.path().join("switchboard.toml")).unwrap();
    let variables = os_pairs(&[("SWITCHBOARD_PORT", "x")]);
    let ConfigErrors(errors) = load(dir.path(), None, variables, [], Occasion::Start).unwrap_err();
    assert_eq!(errors.len(), 2);
}

#[test]
fn a_reread_configuration_changes_what_may_change_live() {
    let running =
        good([toml("shards = 2\nmax_connections = 10\ntls_cert = \"c\"\ntls_key = \"k\"")]);
    let read = good([toml(
        "shards = 3\nmax_connections = 20\nport = 9\ntls_cert = \"new\"\ntls_key = \"k\"",
    )]);
    let reread = running.reread(&read);
    assert_eq!(
        reread.in_force(),
        format!("listen = \"{}\", shards = {}", running.listen, running.shards)
    );
    let Reread { config, live, restart } = reread;
    assert_eq!((live, restart), (vec!["tls_cert", "max_connections"], vec!["listen", "shards"]));
    let expected = Config { max_connections: 20, tls_cert: Some("new".into()), ..running.clone() };
    assert_eq!(config, expected);
    // A server that started without TLS has no acceptor for it.
    let plain = good([toml("")]);
    let Reread { config, live, restart } =
        plain.reread(&good([toml("tls_cert = \"c\"\ntls_key = \"k\"")]));
    assert_eq!((config, live, restart), (plain, vec![], vec!["tls_cert", "tls_key"]));
}

/// `max_message_bytes` may change live, but not beyond what a shard's queue was created for.
#[test]
fn a_live_key_waits_for_one_that_it_must_go_together_with() {
    let running = good([toml("")]);
    let read = good([toml(
        "max_message_bytes = \"8 MiB\"\nshard_queue_max_bytes = \"8 MiB\"\ndrain = \"1s\"",
    )]);
    let Reread { config, live, restart } = running.reread(&read);
    assert_eq!(live, ["drain"]);
    assert_eq!(restart, ["max_message_bytes", "shard_queue_max_bytes"]);
    assert_eq!(config.max_message_bytes, running.max_message_bytes);
}

#[test]
fn the_guide_says_of_every_key_when_it_takes_effect() {
    let guide = include_str!("../../../../docs/operations.md");
    for key in KEYS {
        let row = guide.lines().find(|row| row.starts_with(&format!("| `{}` |", key.name)));
        let row = row.unwrap_or_else(|| panic!("{} has no row", key.name));
        let word = match key.reload {
            Reload::Live => "live",
            Reload::LiveWhile(_) => "live with TLS",
            Reload::Restart => "restart",
        };
        assert_eq!(row.split(" | ").nth(3), Some(word), "{row}");
    }
}
