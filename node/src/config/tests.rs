//! Configurations: what is taken, and how what is wrong is named.

use super::*;

fn load(text: &str) -> Result<FabricConfig, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, text).unwrap();
    load_fabric_config(&path)
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(load("").unwrap(), FabricConfig::default());
    assert_eq!(load("# nothing\n").unwrap(), FabricConfig::default());
    assert_eq!(
        load("inbox:\n  # accept: none\n").unwrap(),
        FabricConfig::default()
    );
}

#[test]
fn a_missing_file_is_an_error_but_a_data_folder_without_one_has_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = DataDir::at(folder.path());
    assert!(matches!(
        load_fabric_config(&data_dir.config()),
        Err(ConfigError::Missing { .. })
    ));
    assert_eq!(FabricConfig::of(&data_dir).unwrap(), FabricConfig::default());
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let config = FabricConfig {
        node_name: Some(NodeId::new("rack-1/host").unwrap()),
        mesh: Some("# lab: 1".to_owned()),
        listen: "[::]:4001".parse().unwrap(),
        bootstrap: vec![Address::new("/ip4/192.0.2.1/udp/4001/quic-v1").unwrap()],
        api_listen: "[::1]:7070".parse().unwrap(),
        transport: TransportConfig {
            mtu_max: 1_452,
            backend: Backend::Kernel,
        },
        inbox: InboxConfig {
            accept: Accept::Only(vec![NodeId::new("alice").unwrap()]),
            quota_bytes: Some(u64::MAX),
            min_free_bytes: 0,
            abandoned_after_seconds: 60,
        },
        send_roots: vec![PathBuf::from("/srv/\"quoted\" and spaced")],
        limits: Limits {
            connections: 1,
            connections_per_address: 2,
            transfers: 3,
            upload_bytes: 4,
        },
        log: "info,hyperfabric_mesh=debug".to_owned(),
    };
    save_fabric_config(&config, &path).unwrap();
    assert_eq!(load_fabric_config(&path).unwrap(), config);
    assert_eq!(FabricConfig::from_value(&config.to_value()).unwrap(), config);
    save_fabric_config(&FabricConfig::default(), &path).unwrap();
    assert_eq!(load_fabric_config(&path).unwrap(), FabricConfig::default());
}

#[test]
fn an_unknown_key_is_named_with_the_key_that_was_probably_meant() {
    for (text, expected) in [
        (
            "inbox:\n  acept: all\n",
            "unknown key `inbox.acept`; did you mean `inbox.accept`?",
        ),
        ("lissten: []\n", "unknown key `lissten`; did you mean `listen`?"),
        (
            "inbx:\n  accept: all\n",
            "unknown key `inbx`; did you mean `inbox`?",
        ),
        (
            "mtu_max: 1500\n",
            "unknown key `mtu_max`; did you mean `transport.mtu_max`?",
        ),
        (
            "transport:\n  mtu: 1500\n",
            "unknown key `transport.mtu`; did you mean `transport.mtu_max`?",
        ),
        (
            "colour_of_the_bicycle_shed: red\n",
            "unknown key `colour_of_the_bicycle_shed`",
        ),
        (
            "inbox: all\n",
            "unknown key `inbox`; did you mean `inbox.accept`?",
        ),
    ] {
        match load(text) {
            Err(error @ ConfigError::UnknownKey { .. }) => assert_eq!(error.to_string(), expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_bad_value_is_named_with_its_key_and_what_is_allowed() {
    let error = load("transport:\n  mtu_max: 64000\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`transport.mtu_max` cannot be 64000: expected a number from 1200 to 9000"
    );
    for text in [
        "mesh: \"two\\nlines\"",
        "mesh: 7",
        "listen: []",
        "listen: [\"[::]:4001\", \"10.0.0.1:0\"]",
        "listen: localhost",
        "listen: [\"example.org:1\"]",
        "bootstrap: [\"192.0.2.1:4001\"]",
        "log: \"a=b=c\"",
        "node: {name: \"../up\"}",
        "api: {listen: \"0.0.0.0:80\"}",
        "transport: {mtu_max: 1199}",
        "transport: {backend: pigeon}",
        "inbox: {accept: some}",
        "inbox: {accept: [\"\"]}",
        "inbox: {quota_bytes: -1}",
        "inbox: {abandoned_after_seconds: 0}",
        "inbox: {min_free_bytes: many}",
        "send: {roots: [relative]}",
        "limits: {connections: 0}",
        "limits: {transfers: 1025}",
        "limits: {upload_bytes: 1.5}",
    ] {
        assert!(
            matches!(load(text), Err(ConfigError::BadValue { .. })),
            "{text}: {:?}",
            load(text)
        );
    }
}

#[test]
fn what_is_not_yaml_or_repeats_a_key_is_refused() {
    assert!(matches!(load("listen: [\n"), Err(ConfigError::Syntax { .. })));
    assert!(matches!(
        load("log: info\nlog: warn\n"),
        Err(ConfigError::Syntax { .. })
    ));
    assert!(matches!(load("- listen\n"), Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn a_named_member_stands_for_the_nodes_below_it() {
    let id = |text| NodeId::new(text).unwrap();
    let accept = Accept::Only(vec![id("alice")]);
    assert!(accept.allows(&id("alice")) && accept.allows(&id("alice/gpu0")));
    assert!(!accept.allows(&id("alicia")) && !accept.allows(&id("bob")));
    assert!(Accept::All.allows(&id("bob")) && !Accept::None.allows(&id("bob")));
}
