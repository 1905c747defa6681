//! Accelerators on the PCI bus, told apart by the ids in the public PCI ID repository (<https://pci-ids.ucw.cz>).

use std::path::Path;

use hyperfabric_protocol::types::HardwareType;

use super::{DEVICES_MAX, names_in, text};

const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;
const HABANA: u16 = 0x1da3;

/// The products that the fabric has a type for.
const KNOWN: &[(u16, &[u16], HardwareType)] = &[
    // PCIe, SXM5 with 64, 80, 94 and 96 GB, NVL, CNX, and the GPU of a Grace Hopper.
    (
        NVIDIA,
        &[
            0x2313, 0x2321, 0x2330, 0x2331, 0x2336, 0x2337, 0x2338, 0x2339, 0x233d, 0x2342,
        ],
        HardwareType::NvidiaH100,
    ),
    // SXM4 with 40 and 80 GB, PCIe with 80 and 40 GB.
    (
        NVIDIA,
        &[0x20b0, 0x20b2, 0x20b5, 0x20f1],
        HardwareType::NvidiaA100,
    ),
    (NVIDIA, &[0x2684], HardwareType::NvidiaRtx4090),
    (AMD, &[0x74a1], HardwareType::AmdMi300x),
    (AMD, &[0x7408, 0x740c], HardwareType::AmdMi250x),
    (HABANA, &[0x1020], HardwareType::IntelGaudi2),
];

/// An accelerator.
pub(super) struct Device {
    pub(super) address: String,
    /// Vendor and device, such as `10de:2330`.
    pub(super) id: String,
    pub(super) hardware_type: HardwareType,
    pub(super) memory_bytes: Option<u64>,
}

/// Returns the accelerators in the order of their addresses, labelled `gpu0`, `gpu1`, … and `accel0`, ….
pub(super) fn accelerators(root: &Path) -> impl Iterator<Item = (String, Device)> {
    let folder = root.join("sys/bus/pci/devices");
    let (mut gpus, mut others) = (0, 0);
    names_in(&folder)
        .into_iter()
        .filter_map(move |address| {
            let device = folder.join(&address);
            let vendor = hex(&device.join("vendor"))?;
            let product = hex(&device.join("device"))?;
            let class = hex(&device.join("class"))? >> 8;
            let (vendor, product) = (u16::try_from(vendor).ok()?, u16::try_from(product).ok()?);
            let hardware_type = classify(class, vendor, product)?;
            let display = class >> 8 == 0x03;
            let (label, count) = if display {
                ("gpu", &mut gpus)
            } else {
                ("accel", &mut others)
            };
            let label = format!("{label}{count}");
            *count += 1;
            // Only amdgpu tells the size of its memory in a file.
            let memory_bytes = text(&device.join("mem_info_vram_total")).and_then(|bytes| bytes.parse().ok());
            Some((
                label,
                Device {
                    address,
                    id: format!("{vendor:04x}:{product:04x}"),
                    hardware_type,
                    memory_bytes,
                },
            ))
        })
        .take(DEVICES_MAX)
}

/// Decides what a device is by its class, vendor and product; `None` for what computes nothing for others.
fn classify(class: u32, vendor: u16, product: u16) -> Option<HardwareType> {
    let known = KNOWN
        .iter()
        .find(|(of, products, _)| *of == vendor && products.contains(&product));
    match class {
        // VGA, 3D and other display controllers, processing accelerators (PCI Code and ID Assignment, 1.4 and 1.19).
        0x0300 | 0x0302 | 0x0380 | 0x1200 => {}
        _ => return None,
    }
    match known {
        Some((.., hardware_type)) => Some(*hardware_type),
        // A VGA controller of another vendor is a processor's own, a management controller's, or a virtual one.
        None if class == 0x0300 && vendor != NVIDIA && vendor != AMD => None,
        None => Some(HardwareType::Custom),
    }
}

fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}
