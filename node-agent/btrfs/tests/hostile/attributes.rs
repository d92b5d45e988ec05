//! Payloads whose attributes are not those that the command has: missing, repeated, foreign,
//! unknown, of a wrong size, or lying about it.

use icbd_btrfs::stream::Attribute;

use super::case::{Case, Stage, stages};
use super::commands::{attribute, has_length, put_together, taken_apart};
use super::target::Target;

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = Vec::new();
    for stage in stages(target) {
        let attributes = taken_apart(&stage.command, stage.version);
        for index in 0..attributes.len() {
            of_one(&stage, &attributes, index, &mut cases);
        }
        strange(&stage, &attributes, &mut cases);
    }
    cases
}

/// What can be wrong with one attribute.
fn of_one(stage: &Stage<'_>, all: &[(u16, Vec<u8>)], index: usize, cases: &mut Vec<Case>) {
    let version = stage.version;
    let (before, [one, after @ ..]) = all.split_at(index) else {
        return;
    };
    let (number, value) = one;
    let name = Attribute::from_number(*number, version).unwrap();
    let around = |one: &[u8]| {
        let (before, after) = (put_together(before, version), put_together(after, version));
        [&before, one, &after].concat()
    };
    let mut case = |class, what: &str, payload: &[u8]| {
        cases.push(stage.refused(class, format!("{name}: {what}"), payload));
    };

    case("missing attribute", "left out", &around(&[]));
    // In front, where it leaves DATA at the end.
    let twice = [
        &attribute(*number, value.len(), value, version),
        &around(&put_together(std::slice::from_ref(one), version))[..],
    ]
    .concat();
    case("repeated attribute", "there twice", &twice);
    if has_fixed_size(name) {
        for (what, value) in [
            ("empty", &[][..]),
            ("a byte short", &value[1..]),
            ("a byte long", &[&value[..], &[0]].concat()),
            ("twice as long", &value.repeat(2)),
        ] {
            let odd = attribute(*number, value.len(), value, version);
            case("attribute of a wrong size", what, &around(&odd));
        }
    }
    if has_length(*number, version) {
        let length = value.len();
        for lie in [
            length + 1,
            length + 2,
            length.wrapping_sub(1),
            length + 0x100,
            0xffff,
        ] {
            let lie = lie & 0xffff;
            if lie == length {
                continue;
            }
            let lying = attribute(*number, lie, value, version);
            case(
                "attribute lying about its length",
                &format!("{lie} for {length}"),
                &around(&lying),
            );
        }
    }
}

/// Attributes that are none of the command's, and payloads that end too early.
fn strange(stage: &Stage<'_>, all: &[(u16, Vec<u8>)], cases: &mut Vec<Case>) {
    let version = stage.version;
    let payload = put_together(all, version);
    for number in [0, 32, 0xff, 0x8000, 0xffff] {
        let unknown = [&attribute(number, 1, &[0], version), &payload[..]].concat();
        cases.push(stage.refused("unknown attribute", number, &unknown));
    }
    let newer = Attribute::ALL
        .iter()
        .filter(|a| Attribute::from_number(a.number(), version).is_none());
    for attr in newer {
        let unknown = [&attribute(attr.number(), 8, &[0; 8], version), &payload[..]].concat();
        cases.push(stage.refused("attribute of a later version", attr, &unknown));
    }
    for foreign in [Attribute::Uuid, Attribute::Ctransid, Attribute::Otime] {
        // UTIMES may have it.
        let kind = stage.command.kind();
        if foreign == Attribute::Otime && kind == icbd_btrfs::stream::Kind::Utimes {
            continue;
        }
        let value = [0; 16];
        let more = [
            &attribute(foreign.number(), 16, &value, version),
            &payload[..],
        ]
        .concat();
        cases.push(stage.refused("foreign attribute", foreign, &more));
    }
    cases.push(stage.refused("missing attribute", "all left out", &[]));
    for left in 1..4 {
        let head = attribute(all[0].0, all[0].1.len(), &[], version);
        cases.push(stage.refused("attribute cut short", left, &head[..left]));
    }
}

fn has_fixed_size(attribute: Attribute) -> bool {
    use Attribute as A;
    !matches!(
        attribute,
        A::Path | A::PathTo | A::PathLink | A::ClonePath | A::XattrName | A::XattrData | A::Data
    )
}
