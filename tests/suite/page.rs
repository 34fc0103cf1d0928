//! The reader's way through the README: from an empty folder on, each file, change and command as
//! printed, and what one sees. `.ci/run` asks for it; it takes some minutes and compiles a new project.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::programs::Folder;
use crate::readme::{Fence, fences_from};

#[test]
#[ignore = "takes minutes"]
fn the_readers_way() {
    let folder = Folder::new();
    let clone = folder.join("shmem-test");
    fs::create_dir(&clone).unwrap();
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    symlink(sources, clone.join("src")).unwrap();

    let mut reader = Reader {
        project: folder.join("first"),
        clone,
        undo: vec![],
        changed: false,
        script: "",
        said: None,
    };
    let mut steps = 0;
    for (from, to) in [
        ("## By hand", "## What `server`"),
        ("## Recipes", "## How fast"),
    ] {
        for fence in fences_from(from, to) {
            println!("{}:\n{}", fence.language, fence.text);
            reader.follow(&fence);
            steps += 1;
        }
    }
    assert!(steps > 70, "{steps} is not the whole page");
    reader.tests_green();
    reader.try_recipes();
    reader.take_one_module();
    reader.refuse_an_item();
}

/// What the page's two recipes for messages and for replies have to do: each message comes back as it
/// was, also one that is larger than the ring.
const RECIPES: &str = r#"
use std::os::unix::net::UnixStream;
use std::thread;

use first::framing::{receive, send_all};
use first::replies::both_ways;

fn main() -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let echo = thread::spawn(move || -> anyhow::Result<()> {
        let (mut to, mut from, peer) = both_ways(theirs)?;
        let mut rest = vec![];
        loop {
            let connected = peer.wait(from.empty_signal());
            let mut messages = vec![];
            receive(&mut from, &mut rest, |message| messages.push(message.to_vec()))?;
            for message in messages {
                send_all(&mut to, &peer, &(message.len() as u32).to_ne_bytes())?;
                send_all(&mut to, &peer, &message)?;
            }
            if !connected {
                assert!(rest.is_empty() && peer.confirm(0));
                return Ok(());
            }
        }
    });
    let (mut to, mut from, peer) = both_ways(ours)?;
    let (mut rest, mut replies) = (vec![], 0);
    for n in 0..3000 {
        let message = vec![n as u8; n * n % 50_000];
        send_all(&mut to, &peer, &(message.len() as u32).to_ne_bytes())?;
        send_all(&mut to, &peer, &message)?;
        while replies == n {
            receive(&mut from, &mut rest, |reply| {
                assert_eq!(reply, message);
                replies += 1;
            })?;
            if replies == n {
                assert!(peer.wait(from.empty_signal()));
            }
        }
    }
    assert_eq!(peer.goodbye(), Some(0));
    echo.join().unwrap()
}
"#;

struct Reader {
    clone: PathBuf,
    project: PathBuf,
    /// Files as they were before a change that is only there to see something.
    undo: Vec<(PathBuf, String)>,
    /// Whether there is something to build.
    changed: bool,
    /// The last commands.
    script: &'static str,
    /// What they printed, if nothing has changed since.
    said: Option<String>,
}

impl Reader {
    fn follow(&mut self, fence: &Fence) {
        // A change ends when its outcome was seen.
        if fence.language != "text" && self.said.is_some() {
            for (path, text) in self.undo.drain(..) {
                fs::write(path, text).unwrap();
                self.changed = true;
            }
        }
        match fence.language {
            "toml" | "rust" | "diff" => {
                let (first, rest) = fence.text.split_once('\n').unwrap();
                self.change(fence, first, rest);
                (self.changed, self.said) = (true, None);
            }
            // What a machine lacks is left out, with what would be seen.
            "sh" if ["strace", "ps"]
                .iter()
                .any(|tool| uses(fence.text, tool) && !has(tool)) =>
            {
                self.script = "";
            }
            // Files are copied, and no program runs.
            "sh" if !fence.text.contains("target/release") => {
                self.bash(fence.text);
                (self.changed, self.said) = (true, None);
            }
            "sh" => {
                self.script = fence.text;
                self.run();
            }
            "text" if fence.text.contains(['│', '├']) || fence.text.contains("look, then ask") =>
                {}
            "text" if self.script.is_empty() => {}
            "text" => {
                let whole = self.said.is_some();
                if !whole {
                    self.run(); // The same commands again, with the cure.
                }
                let said = self.said.as_ref().unwrap();
                compare(fence.text, said, whole);
            }
            other => panic!("what is {other} for?\n{}", fence.text),
        }
    }

    /// What is copied tests green where it is copied.
    fn tests_green(&self) {
        let said = self.bash("cargo test --quiet --release");
        assert!(
            said.contains("test result: ok") && !said.contains("error"),
            "{said}"
        );
    }

    fn write_lib(&self, text: &str) {
        fs::write(self.project.join("src/lib.rs"), text).unwrap();
    }

    fn try_recipes(&self) {
        let text = fs::read_to_string(self.project.join("src/lib.rs")).unwrap();
        let text = text
            .replace("Item = f64", "Item = u8")
            .replace("500_000", "10_000");
        self.write_lib(&(text + "pub mod framing;\npub mod replies;\n"));
        fs::write(self.project.join("src/bin/recipes.rs"), RECIPES).unwrap();
        assert_eq!(self.bash("cargo run --release --quiet --bin recipes"), "");
    }

    /// Each module without the others, and with an item of another size.
    fn take_one_module(&self) {
        for module in ["socket", "handover", "ring", "peer"] {
            let rest = "pub type Item = [u8; 4096];\npub const CAPACITY: usize = 1000;\n";
            self.write_lib(&format!("pub mod {module};\n{rest}"));
            let said = self.bash("cargo test --quiet --lib && cargo test --quiet --doc");
            assert!(
                !said.contains("error") && !said.contains("warning"),
                "{said}"
            );
        }
    }

    /// An item that the ring can't hold does not compile, and the compiler says why.
    fn refuse_an_item(&self) {
        self.write_lib(
            "pub mod handover;
             #[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::AsBytes)]
             #[repr(C, align(128))]
             pub struct Item([u8; 128]);
             pub const CAPACITY: usize = 1000;",
        );
        let said = self.bash("cargo build --quiet --lib");
        assert!(
            said.contains("error") && said.contains("align `Item`"),
            "{said}"
        );
    }

    fn change(&mut self, fence: &Fence, first: &str, rest: &str) {
        let name = first
            .split_whitespace()
            .find(|word| word.ends_with(".rs") || word.ends_with(".toml"));
        let Some(path) = name.map(|name| self.project.join(name)) else {
            // What is to be added: a line below `edition`, and the rest at the end.
            let path = self.project.join("Cargo.toml");
            let text = fs::read_to_string(&path).unwrap();
            let (before, behind) = text.split_once("\n\n").unwrap();
            fs::write(path, format!("{before}\n{first}\n\n{behind}{rest}")).unwrap();
            return;
        };
        if fence.language != "diff" {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, fence.text).unwrap();
            return;
        }
        let before = fs::read_to_string(&path).unwrap();
        let mut text = before.clone();
        for hunk in rest.split("@@\n") {
            text = changed(&text, hunk);
        }
        fs::write(&path, text).unwrap();
        if first.contains("undo") {
            self.undo.push((path, before));
        }
    }

    fn run(&mut self) {
        if self.changed {
            let built = self.bash("cargo fmt && cargo build --release --quiet");
            assert_eq!(built, "", "it does not build, or with warnings");
            self.changed = false;
        }
        self.said = Some(self.bash(self.script));
    }

    /// Runs commands as in a terminal, and ends what they leave running.
    fn bash(&self, script: &str) -> String {
        let at_work = self.project.is_dir();
        let folder = if at_work { &self.project } else { &self.clone };
        let output = self.clone.join("output");
        let file = File::create(&output).unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).current_dir(folder);
        bash.env_remove("RUST_BACKTRACE")
            .env_remove("CARGO_TARGET_DIR");
        bash.stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let mut bash = bash.process_group(0).spawn().unwrap();
        let group = bash.id();
        bash.wait().unwrap();
        let kill = format!("kill -9 -- -{group} 2>/dev/null; true");
        assert!(
            Command::new("bash")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        let said = fs::read_to_string(output).unwrap();
        println!("--- printed:\n{said}---");
        said
    }
}

/// `text` with the lines of `hunk` that begin with `-` replaced by those with `+`. The page does not
/// indent again what a new block surrounds, so white space at the front does not count.
fn changed(text: &str, hunk: &str) -> String {
    let part = |sign| -> Vec<&str> {
        let lines = hunk
            .lines()
            .filter(|line| line.is_empty() || line.starts_with([' ', sign]));
        lines
            .map(|line| line.get(1..).unwrap_or_default())
            .collect()
    };
    let (old, new) = (part('-'), part('+'));
    let lines: Vec<_> = text.lines().collect();
    let same = |(a, b): (&&str, &&str)| a.trim() == b.trim();
    let places: Vec<_> = lines
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| window.iter().zip(&old).all(same))
        .map(|(place, _)| place)
        .collect();
    let [place] = places[..] else {
        panic!("{} places for\n{hunk}\nin\n{text}", places.len());
    };
    [&lines[..place], &new, &lines[place + old.len()..]]
        .concat()
        .join("\n")
        + "\n"
}

/// What the programs print has to be the same to the digit, each program's lines in their order. Of all
/// else, numbers may differ, and the remarks behind are the page's.
fn compare(shown: &str, said: &str, whole: bool) {
    for program in [
        &["Sending "][..],
        &["Sum: ", "The client ", "A client "],
        &["Error"],
        &["status"],
    ] {
        let of = |text: &str| -> Vec<String> {
            let lines = text
                .lines()
                .filter(|line| program.iter().any(|p| line.starts_with(p)));
            lines.map(str::to_string).collect()
        };
        let (shown, said) = (of(shown), of(said));
        if whole && !shown.is_empty() {
            assert_eq!(shown, said);
        } else {
            assert!(
                shown.is_empty() || said.windows(shown.len()).any(|part| part == shown),
                "{shown:#?}\nis not in\n{said:#?}"
            );
        }
    }
    let plain = |line: &str| {
        let ends = [") = ", "\"...", " ..."];
        let line = ends
            .iter()
            .fold(line, |line, end| line.split(end).next().unwrap());
        let words: Vec<_> = line.split_whitespace().collect();
        let mut plain = String::new();
        for c in words.join(" ").chars() {
            match c {
                '0'..='9' | 'a'..='f' if plain.ends_with('#') => {}
                '0'..='9' => plain.push('#'),
                other => plain.push(other),
            }
        }
        plain
    };
    let said: Vec<_> = said.lines().map(plain).collect();
    for line in shown.lines().map(plain) {
        assert!(
            said.iter().any(|said| said.contains(&line)),
            "{line}\nis not in\n{said:#?}"
        );
    }
}

fn uses(script: &str, tool: &str) -> bool {
    script.split_whitespace().any(|word| word == tool)
}

fn has(tool: &str) -> bool {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).any(|path| path.join(tool).exists())
}
