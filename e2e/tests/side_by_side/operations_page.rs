//! The page that explains the reasons keeps up with them. Needs no cluster.

use icbd_crds::Reason;

#[test]
fn every_reason_is_explained_in_the_operations_page() {
    let page = include_str!("../../../docs/operations.md");
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| {
            !page
                .lines()
                .any(|line| line.starts_with(&format!("| `{reason}` |")))
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/operations.md has no row for {missing:?}"
    );
}
