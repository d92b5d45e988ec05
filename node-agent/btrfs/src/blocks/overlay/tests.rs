//! The overlay beside a real tree, through random valid sequences of commands; and by hand what
//! kernels are seen to send.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::*;
use crate::stream::Timestamp;

fn path(path: &[u8]) -> TreePath<'_> {
    TreePath::new(path).unwrap()
}

fn utimes(path: TreePath<'_>) -> Command<'_> {
    let time = Timestamp {
        seconds: 0,
        nanoseconds: 0,
    };
    Command::Utimes {
        path,
        atime: time,
        mtime: time,
        ctime: time,
        otime: None,
    }
}

/// A tree in memory, its root first.
#[derive(Clone)]
struct Tree(Vec<Object>);

#[derive(Clone)]
struct Object {
    node: Node,
    /// Names of a directory's entries, and which objects they are.
    entries: Option<BTreeMap<Vec<u8>, usize>>,
    done: bool,
}

impl Tree {
    fn new(root: Node) -> Tree {
        Tree(vec![Object {
            node: root,
            entries: Some(BTreeMap::new()),
            done: false,
        }])
    }

    /// Every name of the tree with what it is, the root last.
    fn names(&self) -> Vec<(Vec<u8>, usize)> {
        let mut names = Vec::new();
        self.collect(&[], 0, &mut names);
        names
    }

    fn collect(&self, path: &[u8], object: usize, names: &mut Vec<(Vec<u8>, usize)>) {
        for (name, &entry) in self.0[object].entries.iter().flatten() {
            let below = [path, name].join(&b"/"[usize::from(path.is_empty())..]);
            self.collect(&below, entry, names);
        }
        names.push((path.to_vec(), object));
    }

    fn is_directory(&self, object: usize) -> bool {
        self.0[object].entries.is_some()
    }

    fn add(&mut self, at: &[u8], node: Node, is_directory: bool) {
        self.0.push(Object {
            node,
            entries: is_directory.then(BTreeMap::new),
            done: false,
        });
        self.place(at, self.0.len() - 1);
    }

    fn place(&mut self, at: &[u8], object: usize) {
        let (directory, name) = path(at).split().unwrap();
        let entries = self.entries(directory);
        assert!(entries.insert(name.to_vec(), object).is_none());
    }

    fn remove(&mut self, at: &[u8]) -> usize {
        let (directory, name) = path(at).split().unwrap();
        self.entries(directory).remove(name).unwrap()
    }

    fn entries(&mut self, directory: TreePath<'_>) -> &mut BTreeMap<Vec<u8>, usize> {
        let mut at = 0;
        for name in directory.as_bytes().split(|&byte| byte == b'/') {
            if !name.is_empty() {
                at = self.0[at].entries.as_ref().unwrap()[name];
            }
        }
        self.0[at].entries.as_mut().unwrap()
    }

    /// A path that is free, somewhere in the tree. Names are few, so that they come again.
    fn free(&self, random: &mut Rng) -> Vec<u8> {
        let directories = self.names();
        let directories = directories.iter().filter(|(_, at)| self.is_directory(*at));
        let (directory, object) = random.choice(directories.collect::<Vec<_>>()).unwrap();
        let entries = self.0[*object].entries.as_ref().unwrap();
        let names = (b'a'..).map(|letter| vec![letter; 2]);
        let skipped = random.usize(..3);
        let mut names = names.filter(|name| !entries.contains_key(name));
        let name = names.nth(skipped).unwrap();
        [&directory[..], &name[..]].join(&b"/"[usize::from(directory.is_empty())..])
    }
}

/// What the parent has: some directories and files, a few with two names.
fn parent(random: &mut Rng) -> Tree {
    let mut tree = Tree::new(Node::Old(Box::default()));
    for _ in 0..random.usize(..12) {
        let at = tree.free(random);
        tree.add(&at, Node::Old(at.clone().into()), random.bool());
    }
    tree
}

/// One command that is valid for the tree, carried out there and in the overlay.
fn step(tree: &mut Tree, overlay: &mut Overlay, parent: &Tree, random: &mut Rng, inode: u64) {
    let names = tree.names();
    let (at, object) = random.choice(&names).unwrap();
    let free = tree.free(random);
    let command = match random.u32(..8) {
        0 => {
            tree.add(&free, Node::Directory(inode), true);
            Command::Mkdir {
                path: path(&free),
                ino: inode,
            }
        }
        1 | 2 => {
            tree.add(&free, Node::File(inode), false);
            Command::Mkfile {
                path: path(&free),
                ino: inode,
            }
        }
        _ if at.is_empty() || tree.0[*object].done => return,
        3 | 4 => {
            if free.starts_with(&[at, &b"/"[..]].concat()) {
                return;
            }
            let object = tree.remove(at);
            tree.place(&free, object);
            Command::Rename {
                path: path(at),
                to: path(&free),
            }
        }
        5 if !tree.is_directory(*object) => {
            tree.place(&free, *object);
            Command::Link {
                path: path(&free),
                existing: path(at),
            }
        }
        6 if tree.0[*object].entries.iter().flatten().next().is_none() => {
            tree.remove(at);
            match tree.is_directory(*object) {
                true => Command::Rmdir { path: path(at) },
                false => Command::Unlink { path: path(at) },
            }
        }
        7 => {
            tree.0[*object].done = !tree.is_directory(*object);
            utimes(path(at))
        }
        _ => return,
    };
    let is_directory = |path: &[u8]| {
        let names = parent.names();
        let (_, object) = names.iter().find(|(name, _)| name == path).unwrap();
        Ok(parent.is_directory(*object))
    };
    overlay.apply(&command, is_directory).unwrap();
}

#[test]
fn whatever_is_not_done_with_is_found() {
    for seed in 0..400 {
        let mut random = Rng::with_seed(seed);
        let has_parent = random.bool();
        let parent = match has_parent {
            true => parent(&mut random),
            false => Tree::new(Node::Directory(ROOT)),
        };
        let (mut tree, mut overlay) = (parent.clone(), Overlay::new(has_parent));
        for inode in 257..337 {
            step(&mut tree, &mut overlay, &parent, &mut random, inode);
            for (name, object) in tree.names() {
                let Object { node, done, .. } = &tree.0[object];
                if !done {
                    let found = overlay.find(path(&name)).unwrap();
                    assert_eq!(found, *node, "seed {seed}, {}", name.escape_ascii());
                }
            }
        }
    }
}

/// Applies commands to a tree whose parent has directories wherever a path ends in `dir`.
fn apply(overlay: &mut Overlay, commands: &[Command<'_>]) {
    for command in commands {
        overlay
            .apply(command, |path| Ok(path.ends_with(b"dir")))
            .unwrap();
    }
}

fn rename(from: &'static str, to: &'static str) -> Command<'static> {
    Command::Rename {
        path: path(from.as_bytes()),
        to: path(to.as_bytes()),
    }
}

#[test]
fn a_new_directory_in_an_old_ones_place_has_its_own_files() {
    let mut overlay = Overlay::new(true);
    let mkdir = Command::Mkdir {
        path: path(b"o258-9-0"),
        ino: 258,
    };
    let mkfile = Command::Mkfile {
        path: path(b"dir/file"),
        ino: 259,
    };
    apply(&mut overlay, &[rename("dir", "aside"), mkdir]);
    apply(&mut overlay, &[rename("o258-9-0", "dir"), mkfile]);
    let find = |path: &'static [u8]| overlay.find(TreePath::new(path).unwrap()).unwrap();
    assert_eq!(find(b"aside/file"), Node::Old((*b"dir/file").into()));
    assert_eq!(find(b"dir/file"), Node::File(259));
    assert_eq!(find(b"dir"), Node::Directory(258));
}

#[test]
fn what_the_stream_did_not_make_in_a_new_directory_is_not_there() {
    let mut overlay = Overlay::new(false);
    let mkdir = Command::Mkdir {
        path: path(b"dir"),
        ino: 257,
    };
    apply(&mut overlay, &[mkdir]);
    for unknown in [&b"file"[..], b"dir/file", b"dir/file/below"] {
        let error = overlay.find(path(unknown)).unwrap_err();
        assert!(matches!(error, BlockError::Unknown { .. }), "{error}");
    }
}

#[test]
fn a_file_that_is_done_with_is_forgotten_under_all_its_names() {
    let mut overlay = Overlay::new(true);
    let mkdir = Command::Mkdir {
        path: path(b"new"),
        ino: 300,
    };
    apply(&mut overlay, &[mkdir]);
    for ino in 301..1000 {
        let (orphan, name) = (format!("o{ino}-7-0"), format!("new/{ino}"));
        let also = format!("dir/{ino}");
        let [orphan, name, also] = [&orphan, &name, &also].map(|name| path(name.as_bytes()));
        let link = Command::Link {
            path: also,
            existing: name,
        };
        // The times of directories are set while a file is not done with.
        apply(
            &mut overlay,
            &[
                Command::Mkfile { path: orphan, ino },
                Command::Rename {
                    path: orphan,
                    to: name,
                },
                utimes(path(b"new")),
                utimes(path(b"dir")),
                link,
                utimes(also),
            ],
        );
    }
    assert_eq!(overlay.names.len(), 1, "{overlay:?}");
    assert!(overlay.given.is_empty());
}

#[test]
fn a_file_moved_out_of_the_way_is_remembered_until_it_is_done_with() {
    let mut overlay = Overlay::new(true);
    apply(&mut overlay, &[rename("b", "o258-7-0"), rename("a", "b")]);
    apply(&mut overlay, &[utimes(path(b"b"))]);
    let orphan = path(b"o258-7-0");
    assert_eq!(overlay.find(orphan).unwrap(), Node::Old((*b"b").into()));
    apply(&mut overlay, &[rename("o258-7-0", "a"), utimes(path(b"a"))]);
    assert!(overlay.names.is_empty());
}
