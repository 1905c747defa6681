//! Hosts made of files, as a kernel shows them.

use super::*;

/// A host as its kernel shows it.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.file(
            "proc/cpuinfo",
            "processor\t: 0\nmodel name\t: X\n\nprocessor\t: 1\n",
        );
        host.file("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n");
        host.file("proc/sys/kernel/hostname", "rack1.example.org\n");
        host
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn pci(&self, address: &str, class: &str, vendor: &str, device: &str) {
        for (name, content) in [("class", class), ("vendor", vendor), ("device", device)] {
            self.file(
                &format!("sys/bus/pci/devices/{address}/{name}"),
                &format!("{content}\n"),
            );
        }
    }

    fn interface(&self, name: &str, state: &str, speed: &str, real: bool) {
        self.file(&format!("sys/class/net/{name}/operstate"), &format!("{state}\n"));
        self.file(&format!("sys/class/net/{name}/speed"), &format!("{speed}\n"));
        if real {
            self.file(&format!("sys/class/net/{name}/device/vendor"), "0x8086\n");
        }
    }

    fn detect(&self) -> Vec<NodeSignature> {
        detect_in(self.0.path(), &host_name_in(self.0.path()))
    }
}

#[test]
fn a_host_without_devices_is_one_server() {
    let nodes = Host::new().detect();
    assert_eq!(nodes.len(), 1);
    let host = &nodes[0];
    assert_eq!(
        (host.node_id.as_str(), host.hardware_type),
        ("rack1", HardwareType::CpuServer)
    );
    assert_eq!((host.compute_units, host.memory_gb), (Some(2), Some(16.384)));
    assert!(validate_hardware_compatibility(host));
}

#[test]
fn even_an_empty_root_is_a_server_that_the_fabric_takes() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = detect_in(folder.path(), &host_name_in(folder.path()));
    assert_eq!(nodes.len(), 1);
    assert_eq!(
        (nodes[0].node_id.as_str(), nodes[0].compute_units),
        ("node", Some(1))
    );
    assert!(validate_hardware_compatibility(&nodes[0]));
}

#[test]
fn this_host_is_detected_and_compatible() {
    let nodes = detect_hardware_capabilities();
    assert_eq!(nodes[0].node_id, host_name());
    assert!(nodes.iter().all(validate_hardware_compatibility));
}

#[test]
fn accelerators_are_named_in_the_order_of_their_addresses() {
    let host = Host::new();
    host.pci("0000:41:00.0", "0x030200", "0x10de", "0x2330");
    host.pci("0000:01:00.0", "0x030000", "0x10de", "0x2684");
    host.pci("0000:02:00.0", "0x038000", "0x1002", "0x74a1");
    host.file(
        "sys/bus/pci/devices/0000:02:00.0/mem_info_vram_total",
        "206158430208\n",
    );
    host.pci("0000:03:00.0", "0x120000", "0x1da3", "0x1020");
    host.pci("0000:04:00.0", "0x120000", "0x1ae0", "0x0063");
    let found: Vec<_> = host.detect().into_iter().skip(1).collect();
    let named: Vec<_> = found
        .iter()
        .map(|node| (node.node_id.as_str(), node.hardware_type))
        .collect();
    assert_eq!(
        named,
        [
            ("rack1/gpu0", HardwareType::NvidiaRtx4090),
            ("rack1/gpu1", HardwareType::AmdMi300x),
            ("rack1/accel0", HardwareType::IntelGaudi2),
            ("rack1/accel1", HardwareType::Custom),
            ("rack1/gpu2", HardwareType::NvidiaH100),
        ]
    );
    assert_eq!(found[1].memory_gb, Some(206.158_430_208));
    assert_eq!(found[0].metadata["pci"], "0000:01:00.0");
    assert_eq!(found[0].metadata["pci_id"], "10de:2684");
}

#[test]
fn what_only_draws_a_console_is_no_node() {
    let host = Host::new();
    host.pci("0000:00:01.0", "0x030000", "0x1234", "0x1111");
    host.pci("0000:00:02.0", "0x030000", "0x8086", "0x3e92");
    host.pci("0000:00:03.0", "0x020000", "0x10de", "0x2330");
    host.pci("0000:00:04.0", "nonsense", "0x10de", "0x2330");
    assert_eq!(host.detect().len(), 1);
}

#[test]
fn disks_are_storage_with_their_capacity() {
    let host = Host::new();
    host.file("sys/block/nvme0n1/size", "2000000000\n");
    host.file("sys/block/nvme0c0n1/size", "2000000000\n");
    host.file("sys/block/nvme1n1/size", "0\n");
    host.file("sys/block/sda/size", "2000000000\n");
    let nodes = host.detect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(
        (nodes[1].node_id.as_str(), nodes[1].hardware_type),
        ("rack1/nvme0n1", HardwareType::StorageArray)
    );
    assert_eq!(nodes[1].metadata["capacity_bytes"], "1024000000000");
}

#[test]
fn bandwidth_is_that_of_the_fastest_real_interface_that_is_up() {
    let host = Host::new();
    host.interface("lo", "unknown", "", false);
    host.interface("eth0", "up", "25000", true);
    host.interface("eth1", "up", "100000", true);
    host.interface("eth2", "down", "400000", true);
    host.interface("veth0", "up", "1000000", false);
    let nodes = host.detect();
    assert!((nodes[0].bandwidth_gbps - 100.0).abs() < 1e-9);
    assert_eq!(nodes[0].metadata["link"], "eth1");
}

#[test]
fn a_link_of_unknown_or_little_speed_counts_as_the_slowest_that_the_fabric_knows() {
    for (speed, told) in [("-1", None), ("100", Some("100")), ("", None)] {
        let host = Host::new();
        host.interface("eth0", "up", speed, true);
        let node = host.detect().remove(0);
        assert!((node.bandwidth_gbps - MIN_BANDWIDTH_GBPS).abs() < 1e-9, "{speed}");
        assert_eq!(node.metadata.get("link_mbps").map(String::as_str), told);
    }
}

#[test]
fn compatibility_has_the_limits_of_the_reference() {
    let node = |hardware_type, bandwidth: f64, latency| {
        NodeSignature::new(NodeId::new("n").unwrap(), hardware_type, bandwidth, latency).unwrap()
    };
    assert!(validate_hardware_compatibility(&node(
        HardwareType::NvidiaH100,
        MIN_BANDWIDTH_GBPS,
        u64::MAX
    )));
    assert!(validate_hardware_compatibility(&node(
        HardwareType::NvidiaH100,
        MAX_BANDWIDTH_GBPS,
        0
    )));
    assert!(!validate_hardware_compatibility(&node(
        HardwareType::NvidiaH100,
        0.99,
        0
    )));
    assert!(!validate_hardware_compatibility(&node(
        HardwareType::NvidiaH100,
        1_000.1,
        0
    )));
    let mut quantum = node(HardwareType::QuantumQpu, 1.0, MAX_LATENCY_QUANTUM_NS);
    assert!(
        !validate_hardware_compatibility(&quantum),
        "it does not state its coherence time"
    );
    quantum.quantum_coherence_time_us = Some(QUANTUM_COHERENCE_THRESHOLD_US);
    assert!(validate_hardware_compatibility(&quantum));
    quantum.quantum_coherence_time_us = Some(9.9);
    assert!(!validate_hardware_compatibility(&quantum));
    quantum.quantum_coherence_time_us = Some(50.0);
    quantum.latency_ns = MAX_LATENCY_QUANTUM_NS + 1;
    assert!(!validate_hardware_compatibility(&quantum));
}
