//! Prints the three CustomResourceDefinitions as YAML, for the chart.

use std::io::{self, Write};

use icbd_crds::{ReplicationTarget, Snapshot, VMImage, yaml};
use kube::CustomResourceExt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = io::stdout().lock();
    for crd in [VMImage::crd(), Snapshot::crd(), ReplicationTarget::crd()] {
        write!(out, "---\n{}", yaml::to_string(&crd)?)?;
    }
    Ok(())
}
