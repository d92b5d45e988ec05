//! Decisions on made-up authorities: single ones, and whole histories with crashes, late views,
//! agents that hear late, and people who delete things.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

const DAY: i64 = 24;
/// Hours that an authority lives here.
const LIFE: i64 = 4 * DAY;

fn at(hour: i64) -> Timestamp {
    Timestamp::from_second(hour * 3600).unwrap()
}

fn id(name: u32) -> Fingerprint {
    Fingerprint::told(name.to_string())
}

fn known(name: u32, since: i64) -> Known {
    Known {
        id: id(name),
        since: at(since),
        until: at(since + LIFE),
    }
}

fn rules(external: bool) -> Rules {
    Rules {
        secret: "icbd-ca".into(),
        external,
        config_map: "icbd-trust".into(),
        certificate: SignedDuration::from_hours(DAY),
    }
}

fn held(signing: u32, next: Option<u32>) -> Held {
    Held {
        signing: known(signing, 0),
        next: next.map(|next| known(next, 0)),
    }
}

fn stored(signing: u32, next: Option<u32>) -> Stored {
    let Held { signing, next } = held(signing, next);
    Stored::Whole { signing, next }
}

fn published(authorities: &[u32], retire_at: Option<i64>) -> Published {
    Published {
        authorities: authorities.iter().copied().map(id).collect(),
        retire_at: retire_at.map(at),
    }
}

fn agents(believed: &[&[u32]]) -> Vec<BTreeSet<Fingerprint>> {
    let set = |agent: &&[u32]| agent.iter().copied().map(id).collect();
    believed.iter().map(set).collect()
}

/// What is decided in the first hour.
fn decided(
    external: bool,
    stored: &Stored,
    published: Option<&Published>,
    held: Option<&Held>,
    told: Option<&[BTreeSet<Fingerprint>]>,
) -> Plan {
    let sight = Sight {
        stored,
        published,
        held,
        told,
    };
    plan(&sight, &rules(external), at(1))
}

#[test]
fn where_nothing_is_an_authority_is_made_and_published() {
    let first = decided(false, &Stored::Absent, None, None, None);
    assert_eq!(
        (first.action, first.problem),
        (Some(Action::Generate), None)
    );
    let then = decided(false, &stored(1, None), None, None, None);
    assert_eq!(then.action, Some(Action::Publish));
    assert_eq!(then.publication, published(&[1], None));
    assert_eq!(then.held, Some(held(1, None)));
    let last = decided(
        false,
        &stored(1, None),
        Some(&published(&[1], None)),
        None,
        None,
    );
    assert_eq!((last.action, last.problem), (None, None));
}

#[test]
fn a_lost_secret_is_written_back_by_a_holder_and_by_nobody_made_anew() {
    let bundle = published(&[1], None);
    let holder = decided(
        false,
        &Stored::Absent,
        Some(&bundle),
        Some(&held(1, None)),
        None,
    );
    assert_eq!(
        (holder.action, holder.problem),
        (Some(Action::WriteBack), None)
    );
    let other = decided(false, &Stored::Absent, Some(&bundle), None, None);
    assert_eq!((other.action, other.held), (None, None));
    assert!(
        other
            .problem
            .unwrap()
            .contains("delete ConfigMap icbd-trust too")
    );
    // Who slept through a rotation holds what is no longer the authority.
    let newer = published(&[2, 1], Some(30));
    let sleeper = decided(
        false,
        &Stored::Absent,
        Some(&newer),
        Some(&held(1, None)),
        None,
    );
    assert_eq!((sleeper.action, sleeper.held), (None, None));
    let awake = decided(
        false,
        &Stored::Absent,
        Some(&newer),
        Some(&held(1, Some(2))),
        None,
    );
    assert_eq!(awake.action, Some(Action::WriteBack));
    assert_eq!(awake.held, Some(held(2, None)));
}

#[test]
fn a_secret_that_cannot_be_read_is_left_alone() {
    let bundle = published(&[1], None);
    let broken = Stored::Unusable("tls.key: no PEM".into());
    for published in [None, Some(&bundle)] {
        let other = decided(false, &broken, published, None, None);
        assert_eq!((other.action, other.held), (None, None));
        assert!(other.problem.unwrap().contains("tls.key: no PEM"));
        let external = decided(true, &broken, published, None, None);
        assert_eq!(external.action, None);
    }
    let holder = decided(false, &broken, Some(&bundle), Some(&held(1, None)), None);
    assert_eq!((holder.action, holder.held), (None, Some(held(1, None))));
    assert!(
        holder
            .problem
            .unwrap()
            .contains("delete the Secret to have that written back")
    );
    let mut expired = known(1, 0);
    expired.until = at(0);
    let expired = Stored::Whole {
        signing: expired,
        next: None,
    };
    let plan = decided(false, &expired, Some(&bundle), None, None);
    assert_eq!(plan.action, None);
    assert!(plan.problem.unwrap().contains("expired at"));
}

#[test]
fn trust_that_is_gone_is_published_again() {
    let plan = decided(
        false,
        &stored(1, Some(2)),
        None,
        Some(&held(1, Some(2))),
        None,
    );
    assert_eq!(plan.publication, published(&[1, 2], None));
    assert_eq!(plan.action, Some(Action::Publish));
    let broken = Stored::Unusable("empty".into());
    let plan = decided(false, &broken, None, Some(&held(1, None)), None);
    assert_eq!(plan.action, Some(Action::Publish));
    assert_eq!(plan.publication, published(&[1], None));
}

#[test]
fn the_next_one_signs_when_all_agents_in_touch_believe_it_and_no_sooner() {
    let (both, all) = (published(&[1, 2], None), agents(&[&[1, 2], &[2, 1]]));
    let some = agents(&[&[1, 2], &[1]]);
    let during = |told| {
        decided(
            false,
            &stored(1, Some(2)),
            Some(&both),
            Some(&held(1, Some(2))),
            told,
        )
    };
    assert_eq!(during(None).action, None);
    assert_eq!(during(Some(&some)).action, None);
    assert!(
        during(Some(&some))
            .waits
            .unwrap()
            .starts_with("1 of 2 agents")
    );
    assert_eq!(during(Some(&all)).action, Some(Action::Promote));

    // It is promoted: it signs when it has been published as the one that does.
    let promoted = stored(2, None);
    let after = decided(
        false,
        &promoted,
        Some(&both),
        Some(&held(1, Some(2))),
        Some(&all),
    );
    assert_eq!(after.held, Some(held(1, Some(2))));
    assert_eq!(after.action, Some(Action::Publish));
    assert_eq!(
        after.publication.authorities,
        published(&[2, 1], None).authorities
    );
    let retires = after.publication.retire_at.unwrap();
    assert!(
        retires >= at(1 + DAY) && retires <= at(1 + DAY + DAY / 2),
        "{retires}"
    );
    let turned = Some(&after.publication);
    let follower = decided(false, &promoted, turned, Some(&held(1, Some(2))), None);
    assert_eq!(follower.held, Some(held(2, None)));

    // The old one is dropped in its time.
    let old = published(&[2, 1], Some(1));
    let dropped = decided(false, &promoted, Some(&old), Some(&held(2, None)), None);
    assert_eq!(dropped.publication, published(&[2], None));
    assert_eq!(dropped.action, Some(Action::Publish));
}

#[test]
fn a_secret_that_somebody_else_writes_is_never_written() {
    let waits = decided(true, &Stored::Absent, None, None, None);
    assert_eq!(waits.action, None);
    assert!(waits.problem.unwrap().contains("Secret icbd-ca"));

    let (old, believed) = (published(&[1], None), agents(&[&[1]]));
    let holder = decided(
        true,
        &stored(2, None),
        Some(&old),
        Some(&held(1, None)),
        Some(&believed),
    );
    assert_eq!(holder.held, Some(held(1, Some(2))));
    assert_eq!(holder.publication, published(&[1, 2], None));
    assert_eq!(holder.action, Some(Action::Publish));
    let stranger = decided(true, &stored(2, None), Some(&old), None, None);
    assert_eq!(stranger.held, Some(held(2, None)));
    assert_eq!(
        stranger.publication.authorities,
        published(&[2, 1], None).authorities
    );
    assert!(stranger.publication.retire_at.is_some());
}

#[test]
fn one_that_comes_back_before_it_was_dropped_gives_the_other_its_full_time() {
    let (both, all) = (published(&[2, 1], Some(2)), agents(&[&[2, 1]]));
    let plan = decided(
        true,
        &stored(1, None),
        Some(&both),
        Some(&held(2, None)),
        Some(&all),
    );
    assert_eq!(plan.held, Some(held(2, Some(1))));
    assert_eq!(
        plan.publication.authorities,
        published(&[1, 2], None).authorities
    );
    assert!(plan.publication.retire_at.unwrap() > at(1 + DAY));
}

/// A replica of the operator.
#[derive(Debug, Default, Clone)]
struct Replica {
    held: Option<Held>,
    /// What it has signed with last, and whether it still does.
    signer: Option<Known>,
    signs: bool,
    /// What it has seen last, and which version that was.
    secret: (u64, Option<Stored>),
    bundle: (u64, Option<Published>),
    problem: Option<String>,
    idle: bool,
}

#[derive(Debug)]
struct World {
    hour: i64,
    external: bool,
    made: u32,
    /// How often an authority was made where there was none.
    generated: u32,
    /// People have deleted or spoilt what does not come back by itself.
    meddled: bool,
    secret: (u64, Stored),
    bundle: (u64, Option<Published>),
    replicas: Vec<Replica>,
    leader: usize,
    agents: Vec<Agent>,
}

#[derive(Debug, Default, Clone)]
struct Agent {
    believes: BTreeSet<Fingerprint>,
    /// Who signed its certificate, and until when that is valid.
    certificate: Option<(Fingerprint, i64)>,
}

#[derive(Debug, Clone)]
enum Deed {
    /// A replica looks at the Secret, or at the ConfigMap.
    Look(usize, bool),
    /// A replica decides and, if it leads, writes; perhaps it dies, before or after writing.
    Decide(usize, Option<bool>),
    Lead(usize),
    /// An agent sees the ConfigMap.
    Hear(usize),
    Enrol(usize, usize),
    Wait(i64),
    DeleteSecret,
    SpoilSecret,
    DeleteBundle,
    /// Somebody puts another authority into the Secret.
    Replace,
}

const REPLICAS: usize = 2;
const AGENTS: usize = 3;

fn deed(with_people: bool) -> impl Strategy<Value = Deed> {
    let dies = prop_oneof![6 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))];
    prop_oneof![
        8 => (0..REPLICAS, any::<bool>()).prop_map(|(who, what)| Deed::Look(who, what)),
        8 => (0..REPLICAS, dies).prop_map(|(who, dies)| Deed::Decide(who, dies)),
        1 => (0..REPLICAS).prop_map(Deed::Lead),
        6 => (0..AGENTS).prop_map(Deed::Hear),
        4 => (0..AGENTS, 0..REPLICAS).prop_map(|(agent, at)| Deed::Enrol(agent, at)),
        6 => (1..=4i64).prop_map(Deed::Wait),
        1 => Just(Deed::DeleteSecret),
        1 => Just(if with_people { Deed::DeleteBundle } else { Deed::Wait(1) }),
        1 => Just(if with_people { Deed::SpoilSecret } else { Deed::Wait(1) }),
    ]
}

impl World {
    fn new() -> Self {
        World {
            hour: 0,
            external: false,
            made: 0,
            generated: 0,
            meddled: false,
            secret: (1, Stored::Absent),
            bundle: (1, None),
            replicas: vec![Replica::default(); REPLICAS],
            leader: 0,
            agents: vec![Agent::default(); AGENTS],
        }
    }

    fn make(&mut self) -> Known {
        self.made += 1;
        known(self.made, self.hour)
    }

    fn write_secret(&mut self, stored: Stored) {
        self.secret = (self.secret.0 + 1, stored);
    }

    fn write_bundle(&mut self, bundle: Option<Published>) {
        self.bundle = (self.bundle.0 + 1, bundle);
    }

    fn look(&mut self, who: usize, at_secret: bool) {
        let replica = &mut self.replicas[who];
        match at_secret {
            true => replica.secret = (self.secret.0, Some(self.secret.1.clone())),
            false => replica.bundle = self.bundle.clone(),
        }
    }

    fn decide(&mut self, who: usize, dies: Option<bool>) {
        let replica = self.replicas[who].clone();
        let Some(stored) = &replica.secret.1 else {
            return;
        };
        if replica.bundle.0 == 0 {
            return;
        }
        let leads = who == self.leader;
        let believed = self.agents.iter().filter(|it| !it.believes.is_empty());
        let told: Vec<_> = believed.map(|agent| agent.believes.clone()).collect();
        let sight = Sight {
            stored,
            published: replica.bundle.1.as_ref(),
            held: replica.held.as_ref(),
            told: leads.then_some(&told[..]),
        };
        let plan = plan(&sight, &rules(self.external), at(self.hour));
        let held = plan.held.clone();
        let signer = held.filter(|held| may_sign(held, replica.bundle.1.as_ref()));
        let signer = signer.map(|held| held.signing);
        self.check_turn(replica.signer.as_ref(), signer.as_ref());
        let replica = &mut self.replicas[who];
        replica.signs = signer.is_some();
        replica.signer = signer.or_else(|| replica.signer.take());
        replica.held = plan.held.clone();
        replica.problem = plan.problem.clone();
        replica.idle = plan.action.is_none();
        assert!(plan.held.is_some() || plan.problem.is_some() || plan.action.is_some());
        if leads && dies != Some(false) {
            self.act(who, plan);
        }
        if dies.is_some() {
            self.replicas[who] = Replica::default();
        }
    }

    /// Nobody turns from an authority that is valid to one that an agent does not believe.
    fn check_turn(&self, before: Option<&Known>, after: Option<&Known>) {
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        let turns = before.id != after.id;
        if turns && before.until > at(self.hour) && !self.meddled {
            for agent in self.agents.iter().filter(|it| !it.believes.is_empty()) {
                let believed = agent.believes.contains(&after.id);
                assert!(believed, "{before:?} -> {after:?}: {self:#?}");
            }
        }
    }

    /// A write succeeds only on what was seen, as with a resource version.
    fn act(&mut self, who: usize, plan: Plan) {
        let replica = self.replicas[who].clone();
        let saw_secret = replica.secret.0 == self.secret.0;
        let Some(action) = plan.action else { return };
        match action {
            Action::Generate => {
                // Both are asked for once more.
                if saw_secret && self.bundle.1.is_none() {
                    assert_eq!(self.secret.1, Stored::Absent);
                    self.generated += 1;
                    let signing = self.make();
                    self.write_secret(Stored::Whole {
                        signing,
                        next: None,
                    });
                }
            }
            Action::WriteBack => {
                if self.secret.1 == Stored::Absent {
                    let Held { signing, next } = plan.held.unwrap();
                    self.write_secret(Stored::Whole { signing, next });
                }
            }
            Action::AddNext if saw_secret => {
                let next = Some(self.make());
                let Stored::Whole { signing, .. } = self.secret.1.clone() else {
                    panic!("nothing to add to: {self:#?}");
                };
                self.write_secret(Stored::Whole { signing, next });
            }
            Action::Promote if saw_secret => {
                let Stored::Whole {
                    next: Some(signing),
                    ..
                } = self.secret.1.clone()
                else {
                    panic!("nothing to promote: {self:#?}");
                };
                self.write_secret(Stored::Whole {
                    signing,
                    next: None,
                });
            }
            Action::Publish if replica.bundle.0 == self.bundle.0 => {
                self.write_bundle(Some(plan.publication));
                self.look(who, false);
            }
            Action::AddNext | Action::Promote | Action::Publish => {}
        }
    }

    fn hear(&mut self, who: usize) {
        if let Some(bundle) = &self.bundle.1 {
            self.agents[who].believes = bundle.authorities.iter().cloned().collect();
        }
    }

    fn enrol(&mut self, agent: usize, replica: usize) {
        let Some(signing) = self.replicas[replica].signer.as_ref() else {
            return;
        };
        if !self.replicas[replica].signs {
            return;
        }
        if self.agents[agent].believes.contains(&signing.id) {
            let until = (self.hour + DAY).min(signing.until.as_second() / 3600);
            self.agents[agent].certificate = Some((signing.id.clone(), until));
        }
    }

    /// Time does not pass without everybody seeing what is there.
    fn wait(&mut self, hours: i64) {
        self.hour += hours;
        for who in 0..REPLICAS {
            self.look(who, true);
            self.look(who, false);
            self.decide(who, None);
        }
    }

    fn does(&mut self, deed: Deed) {
        match deed {
            Deed::Look(who, at_secret) => self.look(who, at_secret),
            Deed::Decide(who, dies) => self.decide(who, dies),
            Deed::Lead(who) => {
                // Getting there takes longer than hearing of a write.
                self.leader = who;
                self.look(who, true);
                self.look(who, false);
            }
            Deed::Hear(who) => self.hear(who),
            Deed::Enrol(agent, replica) => self.enrol(agent, replica),
            Deed::Wait(hours) => self.wait(hours),
            Deed::Replace => {
                // Nobody does it twice before all have seen the first.
                self.wait(0);
                let signing = self.make();
                self.write_secret(Stored::Whole {
                    signing,
                    next: None,
                });
            }
            Deed::DeleteSecret => self.write_secret(Stored::Absent),
            Deed::SpoilSecret => {
                self.meddled = true;
                self.write_secret(Stored::Unusable("spoilt".into()));
            }
            Deed::DeleteBundle => {
                self.meddled = true;
                self.write_bundle(None);
            }
        }
    }

    /// What is in use stays believed.
    fn check_certificates(&self) {
        let Some(bundle) = &self.bundle.1 else { return };
        for agent in &self.agents {
            if let Some((signer, until)) = &agent.certificate
                && *until > self.hour
            {
                assert!(bundle.authorities.contains(signer), "{self:#?}");
            }
        }
    }

    /// Whether a replica does not hold what is signed with.
    fn is_stranger(&self, who: usize) -> bool {
        let held = self.replicas[who].held.as_ref();
        !held.is_some_and(|held| may_sign(held, self.bundle.1.as_ref()))
    }

    /// Whether the Secret holds one that is valid.
    fn has_authority(&self) -> bool {
        matches!(&self.secret.1, Stored::Whole { signing, .. } if signing.until > at(self.hour))
    }

    /// Lets all happen that happens by itself.
    fn settle(&mut self) {
        for _ in 0..12 {
            for who in (0..REPLICAS).chain([self.leader]) {
                self.look(who, true);
                self.look(who, false);
                self.decide(who, None);
            }
            (0..AGENTS).for_each(|agent| self.hear(agent));
        }
    }

    fn check_settled(&self) {
        let leader = &self.replicas[self.leader];
        assert!(leader.idle, "{self:#?}");
        let Stored::Whole { signing, next } = &self.secret.1 else {
            panic!("no authority: {self:#?}");
        };
        assert_eq!((next, &leader.problem), (&None, &None), "{self:#?}");
        for replica in &self.replicas {
            assert_eq!(replica.held.as_ref().map(|it| &it.signing), Some(signing));
        }
        let bundle = self.bundle.1.as_ref().unwrap();
        assert_eq!(bundle.authorities.first(), Some(&signing.id), "{self:#?}");
    }
}

/// The same ones each time, unless PROPTEST_RNG_SEED says another seed; PROPTEST_CASES makes more of them. What
/// shows itself once in tens of thousands is to be looked for on purpose.
fn histories() -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

proptest! {
    #![proptest_config(histories())]

    /// Crashes, late views, and a Secret that goes again and again while somebody holds it.
    #[test]
    fn whatever_dies_when_the_authority_is_replaced_without_a_gap(
        deeds in proptest::collection::vec(deed(false), 0..400)
    ) {
        let mut world = World::new();
        for deed in deeds {
            let (published, generated) = (world.bundle.1.is_some(), world.generated);
            world.does(deed);
            world.check_certificates();
            let anew = published && world.generated > generated;
            prop_assert!(!anew, "a second authority: {world:#?}");
        }
        world.settle();
        match world.replicas[world.leader].problem {
            Some(_) => prop_assert!(!world.has_authority(), "{world:#?}"),
            None => world.check_settled(),
        }
    }

    /// Somebody else replaces the authority while replicas live that hold the old one.
    #[test]
    fn an_authority_from_outside_is_replaced_without_a_gap(
        deeds in proptest::collection::vec((deed(false), 0..40), 0..400)
    ) {
        let mut world = World::new();
        world.external = true;
        world.does(Deed::Replace);
        world.wait(1);
        for (deed, chance) in deeds {
            world.does(match deed {
                _ if chance == 0 => Deed::Replace,
                Deed::Decide(who, _) => Deed::Decide(who, None),
                Deed::DeleteSecret => Deed::Wait(1),
                // A stranger that leads has no choice but the new one.
                Deed::Lead(who) if world.is_stranger(who) => Deed::Wait(1),
                other => other,
            });
            world.check_certificates();
            prop_assert_eq!(world.generated, 0);
        }
        world.does(Deed::Replace);
        world.settle();
        world.check_settled();
    }

    /// People too delete and spoil things. What cannot come back by itself is said to be lost, and
    /// comes anew when they have deleted both.
    #[test]
    fn an_authority_is_never_lost_in_silence_and_comes_anew_when_told_to(
        deeds in proptest::collection::vec(deed(true), 0..200)
    ) {
        let mut world = World::new();
        for deed in deeds {
            let spoilt = matches!(world.secret.1, Stored::Unusable(_));
            let by_hand = matches!(deed, Deed::DeleteSecret | Deed::SpoilSecret);
            world.does(deed);
            if spoilt && !by_hand {
                prop_assert!(matches!(world.secret.1, Stored::Unusable(_)), "overwritten");
            }
        }
        world.settle();
        if world.replicas[world.leader].problem.is_some() {
            prop_assert!(!world.has_authority(), "{world:#?}");
            world.write_secret(Stored::Absent);
            world.settle();
            if world.replicas[world.leader].problem.is_some() {
                world.write_bundle(None);
                world.settle();
            }
        }
        world.check_settled();
    }
}
