//! Several extensions about the same calls: one after the other, within clamps, as tees.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use integration::{Ended, Sandbox, Scratch, built, compile, launcher, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn load(sandbox: &Sandbox, image: &str, options: &[&str]) -> Ended {
    let image = built(image);
    let image = image.to_str().expect("a UTF-8 path");
    launcher(&[&["ext", "load", &sandbox.name, image], options].concat())
}

fn loaded(sandbox: &Sandbox, image: &str, options: &[&str]) {
    let ended = load(sandbox, image, options);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

/// A folder with this in it.
fn folder(name: &str, files: &[(&str, &str)]) -> Scratch {
    let folder = Scratch::new(name);
    std::fs::create_dir(&folder.0).expect("a scratch folder");
    for (file, text) in files {
        let path = folder.0.join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a scratch folder");
        std::fs::write(path, text).expect("a scratch file");
    }
    folder
}

fn sh(sandbox: &Sandbox, script: &str) -> Ended {
    sandbox.run(&["/bin/bash", "-c", script])
}

/// The lines of the sandbox's log about paths with `word`.
fn noticed(sandbox: &Sandbox, word: &str) -> Vec<String> {
    let log = launcher(&["log", &sandbox.name]).stdout;
    log.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
}

#[test]
fn extensions_of_one_command_have_their_own_keys() {
    let images = ["libaudit.so", "libredirect.so"].map(built);
    let images = images.each_ref().map(|image| image.to_str().expect("a UTF-8 path"));
    let config = "redirect:from=/no/sbx,redirect:to=/etc";
    let options = ["run", "--ext", images[0], "--ext", images[1], "--tee=audit", "--config"];
    let command = ["--", "/bin/cat", "/no/sbx/passwd"];
    let ended = launcher(&[&options[..], &[config], &command].concat());
    assert!(ended.status == 0 && ended.stdout.contains("root:"), "{}", ended.stderr);
}

#[test]
fn the_order_in_which_extensions_are_asked_is_shown() {
    let sandbox = Sandbox::up("order");
    loaded(&sandbox, "libredirect.so", &["--config", "from=/a,to=/b", "--clamp", "path=/a"]);
    let clamps = ["--clamp", "process=nginx", "--clamp", "fd=0-2,7", "--clamp", "path=/srv//www/"];
    let rules = ["--config", "rules=openat:*:EIO"];
    loaded(&sandbox, "libfaults.so", &[&rules[..], &clamps].concat());
    loaded(&sandbox, "libaudit.so", &["--tee"]);
    let answer = sandbox.json(&["ext", "ls"]);
    let about = |call: &str| -> Vec<Value> {
        let groups = answer["asked"].as_array().expect("a list").iter();
        let mut groups = groups.filter(|group| {
            let calls = group["calls"].as_array().expect("a list");
            group["when"] == "before" && calls.iter().any(|name| name == call)
        });
        let order = groups.next().map_or(Value::Null, |group| group["order"].clone());
        assert!(groups.next().is_none(), "{call} is in two groups");
        order.as_array().cloned().unwrap_or_default()
    };
    let names = |call: &str| -> Vec<Value> {
        about(call).iter().map(|asked| asked["handler"].clone()).collect()
    };
    assert_eq!(names("openat"), ["audit.touched", "redirect.used", "faults.made"]);
    // Which has both a path and a descriptor.
    assert_eq!(names("newfstatat"), ["redirect.used", "faults.made"]);
    assert_eq!(names("stat"), ["redirect.used"]);
    assert_eq!((names("connect"), names("read").len()), (vec!["audit.reached".into()], 0));
    let openat = about("openat");
    assert_eq!((&openat[0]["tee"], &openat[1]["tee"]), (&true.into(), &false.into()));
    let clamps = ["process=nginx", "fd=0-2,7", "path=/srv/www"];
    assert_eq!(openat[2]["clamps"], serde_json::json!(clamps));
    let text = launcher(&["ext", "ls", &sandbox.name]).stdout;
    let order =
        "  1. audit.touched  tee\n  2. redirect.used  path=/a\n  3. faults.made  process=nginx";
    assert!(text.contains(order) && text.contains("\nbefore openat"), "{text}");
    let extension = text.lines().find(|line| line.starts_with("audit ")).unwrap_or("");
    assert!(extension.ends_with("  tee"), "{text}");
}

#[test]
fn a_clamp_of_paths_is_about_what_lies_below_a_folder() {
    let files = [("www/in", "in"), ("www2/out", "out"), ("www/deep/in", "deep")];
    let folder = folder("meddled", &files);
    let sandbox = Sandbox::up("clamp-paths");
    let clamp = format!("path={}/www", folder.text());
    loaded(&sandbox, "libmeddler.so", &["--config", "word=", "--clamp", &clamp]);
    let script = format!(
        "cd {0}; cat www/in www2/out www/../www2/out www2/../www/in {0}/www/in {0}//./www2/../www/in; \
         cd www; cat ./in deep/in ../www2/out; cd ..; mkdir www/new; cd www/new; rmdir ../new; exec cat /dev/null",
        folder.text()
    );
    let ended = sh(&sandbox, &script);
    assert_eq!((ended.stdout.as_str(), ended.status), ("inoutoutinininindeepout", 0), "{ended:?}");
    let python = format!(
        "import os
os.chdir('/')
for path in ('{0}', '{0}/www', '{0}/www2'):
    fd = os.open(path, os.O_PATH)
    for name in ('www/in', 'in', 'out', 'deep/../in', '../www/in', '../www2/out', '/dev/null'):
        try: os.close(os.open(name, os.O_RDONLY, dir_fd=fd))
        except OSError: pass
    os.stat(fd)
",
        folder.text()
    );
    let lines = || noticed(&sandbox, "before openat ");
    let after = noticed(&sandbox, "after openat ").len();
    let first = lines().len();
    assert_eq!(sandbox.run(&["/usr/bin/python3", "-c", &python]).status, 0);
    let of_shell: Vec<String> = lines()[..first].to_vec();
    let paths: Vec<&str> = of_shell.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    let absolute = format!("{}/www/in", folder.text());
    let again = format!("{}//./www2/../www/in", folder.text());
    assert_eq!(
        paths,
        ["www/in", "www2/../www/in", &absolute, &again, "./in", "deep/in"],
        "{of_shell:#?}"
    );
    assert_eq!(after, first, "after each as before it");
    let of_python: Vec<String> = lines()[first..].to_vec();
    let paths: Vec<&str> = of_python.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    let expected = [
        "www/in",
        &format!("{}/www", folder.text()),
        "www/in",
        "in",
        "out",
        "deep/../in",
        "../www/in",
        "../www/in",
    ];
    assert_eq!(paths, expected, "{of_python:#?}");
    // What was there when the call was made, and where.
    let made = noticed(&sandbox, "after mkdir ");
    assert_eq!(made, ["after mkdir www/new 0"]);
    assert_eq!(noticed(&sandbox, "after rmdir "), ["after rmdir ../new 0"]);
    assert_eq!(noticed(&sandbox, "after chdir ").len(), 2, "www, and www/new");
}

#[test]
fn a_path_is_looked_at_once() {
    let folder = folder("flips", &[("open/f", "open"), ("shut/f", "shut")]);
    let program = compile("gcc", "flips", &[]);
    let counts = |ended: &Ended| -> Vec<u32> {
        ended.stdout.split_whitespace().map(|word| word.parse().expect("a number")).collect()
    };
    let outside = run(Command::new(&program.0).arg(folder.text()));
    let outside = counts(&outside);
    assert!(outside[0] > 100 && outside[1] > 100, "it changes too slowly: {outside:?}");
    let clamp = format!("path={}/shut", folder.text());
    let sandbox = Sandbox::up("flips");
    let config = ["--config", "word=/,refuse=true"];
    loaded(&sandbox, "libmeddler.so", &[&config[..], &["--clamp", &clamp]].concat());
    for place in [folder.text().to_owned(), format!("../{}", folder.text())] {
        // From / the second begins with "..", and is relative.
        let script = format!("cd /; exec {} {place}", program.text());
        let inside = counts(&sh(&sandbox, &script));
        assert!(inside[0] > 100 && inside[2] > 100 && inside[1] == 0, "{place}: {inside:?}");
    }
}

#[test]
fn paths_are_for_the_kernel_what_they_were() {
    let program = compile("gcc", "paths", &[]);
    let folder = folder("paths", &[]);
    let outside = run(Command::new(&program.0).arg(folder.text()));
    assert!(outside.stdout.lines().count() > 25 && outside.stdout.ends_with("the end: done\n"));
    let within = format!("path={}", folder.text());
    for options in [
        &["--clamp", &within][..],
        &["--clamp", "path=/nowhere"],
        &["--tee"],
        &["--tee", "--clamp", &within, "--clamp", "process=paths"],
        &["--clamp", "fd=0-100"],
    ] {
        let sandbox = Sandbox::up("paths");
        loaded(&sandbox, "libmeddler.so", options);
        loaded(&sandbox, "libthrough.so", options);
        assert_eq!(sandbox.run(&[program.text(), folder.text()]), outside, "{options:?}");
    }
}

#[test]
fn signals_come_between_a_look_at_a_path_and_its_call() {
    let exact = compile("gcc", "exact", &[]);
    let images: [(&str, &[&str]); 6] = [
        ("libaudit.so", &[]),
        ("libredirect.so", &["--config", "from=/no/sbx,to=/none"]),
        ("libmeddler.so", &[]),
        ("libmeddler.so", &["--tee"]),
        ("libmeddler.so", &["--clamp", "path=/dev", "--clamp", "process=exact"]),
        ("libmeddler.so", &["--clamp", "path=/no"]),
    ];
    for (image, options) in images {
        let sandbox = Sandbox::up("exact-paths");
        loaded(&sandbox, image, options);
        let ended = sandbox.run(&[exact.text()]);
        assert_eq!(
            (ended.status, ended.stdout.as_str()),
            (0, "as without\n"),
            "{image} {options:?}"
        );
    }
}

#[test]
fn a_clamp_of_descriptors_is_about_some() {
    let sandbox = Sandbox::up("clamp-fds");
    let config = ["--config", "rules=write:*:ENOSPC"];
    loaded(&sandbox, "libfaults.so", &[&config[..], &["--clamp", "fd=1,7-8"]].concat());
    let python = "import os, sys
null = os.open('/dev/null', os.O_WRONLY)
for fd in (5, 7, 8, 9): os.dup2(null, fd)
for fd in (1, 2, 5, 7, 8, 9):
    try: said = os.write(fd, b'-')
    except OSError as error: said = error.strerror
    os.write(2, b'%d %s, ' % (fd, str(said).encode()))";
    let ended = sandbox.run(&["/usr/bin/python3", "-c", python]);
    let said = "1 No space left on device, -2 1, 5 1, 7 No space left on device, \
                8 No space left on device, 9 1, ";
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", said));
    // A descriptor is not the folder that a path begins in, but what a call without one is about.
    let sandbox = Sandbox::up("clamp-folder");
    loaded(&sandbox, "libmeddler.so", &["--config", "word=", "--clamp", "fd=50"]);
    let python = "import os, ctypes
os.dup2(os.open('/etc', os.O_RDONLY), 50)
os.open('hostname', 0, dir_fd=50); os.stat('passwd', dir_fd=50)
ctypes.CDLL(None).fstatat(50, b'', ctypes.create_string_buffer(500), 0x1000)
os.utime(50)";
    assert_eq!(sandbox.run(&["/usr/bin/python3", "-c", python]).status, 0);
    let seen = noticed(&sandbox, "before ");
    assert_eq!(seen, ["before newfstatat  0", "before utimensat  0"], "{seen:?}");
}

/// A process that waits for a line and goes on then.
fn waiting(sandbox: &Sandbox, script: &str) -> (Child, u32) {
    let script = format!("echo $$; read line; {script}");
    let mut command = Command::new(built("sbx-launcher"));
    command.args(["run", "--sandbox", &sandbox.name, "--", "/bin/bash", "-c", &script]);
    let (child, mut lines) = integration::talk_with(&mut command);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut lines, &mut line).expect("it writes");
    (child, line.trim().parse().expect("a pid"))
}

fn go_on(mut child: Child) -> i32 {
    drop(child.stdin.take());
    child.wait().expect("it ends").code().unwrap_or(-1)
}

#[test]
fn a_clamp_of_processes_is_about_a_name_or_a_pid() {
    let folder = folder("processes", &[("f", "here\n")]);
    let sandbox = Sandbox::up("clamp-names");
    let config = format!("from=/no/such,to={}", folder.text());
    let clamps = ["--clamp", "process=cat", "--clamp", "process=a-name-that-is-longer"];
    loaded(&sandbox, "libredirect.so", &[&["--config", &config][..], &clamps].concat());
    let long = folder.0.join("a-name-that-is-longer");
    std::os::unix::fs::symlink("/bin/head", &long).expect("a scratch link");
    let script = format!(
        "cat /no/such/f; head /no/such/f; {} /no/such/f; exec -a cat head /no/such/f",
        long.display()
    );
    let ended = sh(&sandbox, &script);
    assert_eq!((ended.stdout.as_str(), ended.status), ("here\nhere\n", 1), "{}", ended.stderr);
    // Children that it forks, whatever they call themselves.
    let script = "exec 3< <(:); printf '#!/bin/bash\\n(echo > /no/such/g; cat /no/such/g)' > cat";
    let script = format!("cd {}; {script}; chmod +x cat; ./cat; rm cat g", folder.text());
    let ended = sh(&sandbox, &script);
    assert_eq!((ended.stdout.as_str(), ended.status), ("\n", 0), "{}", ended.stderr);
    // By pid, and for programs that run already.
    let sandbox = Sandbox::up("clamp-pids");
    sandbox.load(&built("libthrough.so"));
    let script = "[ -e /etc/passwd ] && exit 0; exit 9";
    let (one, other) = (waiting(&sandbox, script), waiting(&sandbox, script));
    let clamp = format!("process={}", one.1);
    let config = ["--config", "rules=@file:*:EACCES,path=/etc/passwd"];
    loaded(&sandbox, "libfaults.so", &[&config[..], &["--clamp", &clamp]].concat());
    assert_eq!((go_on(one.0), go_on(other.0)), (9, 0));
}

#[test]
fn a_tee_sees_calls_as_they_are_made_and_changes_nothing() {
    let folder = folder("teed", &[("f", "here\n"), ("other", "there\n")]);
    let other = format!("{}/other", folder.text());
    let sandbox = Sandbox::up("tee");
    // Loaded first: the tee sees what the program has said all the same, and afterwards.
    let config = format!("from=/meddled/such,to={}", folder.text());
    loaded(&sandbox, "libredirect.so", &["--config", &config]);
    let meddling = format!("word=/meddled,refuse=true,answer=-5,to={other}");
    loaded(&sandbox, "libmeddler.so", &["--tee", "--config", &meddling]);
    let ended = sh(&sandbox, "cat /meddled/such/f; cat /meddled/such/none");
    assert_eq!((ended.stdout.as_str(), ended.status), ("here\n", 1), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("none: No such file or directory\n"), "{}", ended.stderr);
    // The number of a descriptor that was opened is of no interest.
    let seen = noticed(&sandbox, " openat ").join("\n").replace("f 4", "f 3");
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [
            "before openat /meddled/such/f 0",
            "after openat /meddled/such/f 3",
            "before openat /meddled/such/none 0",
            "after openat /meddled/such/none -2"
        ]
    );
    // Also those that somebody else refuses, and one that fails harms nobody but itself.
    let rules = ["--config", "rules=openat:*:EIO,path=/meddled/io"];
    loaded(&sandbox, "libfaults.so", &rules);
    let ended = sh(&sandbox, "cat /meddled/io; echo status $?; cat /meddled/such/f");
    assert_eq!(ended.stdout, "status 1\nhere\n");
    assert_eq!(noticed(&sandbox, "openat /meddled/io"), ["before openat /meddled/io 0"]);
    let sandbox = Sandbox::up("tee-faults");
    loaded(&sandbox, "libfaults.so", &["--tee", "--config", "rules=read:*:short1+write:*:EIO"]);
    let file = format!("{}/f", folder.text());
    let ended = sandbox.run(&["head", "-c", "5", &file]);
    assert_eq!((ended.stdout.as_str(), ended.status), ("here\n", 0), "{}", ended.stderr);
    let hits: u64 = sandbox.call(&["faults.hits", "0"]).stdout.trim().parse().expect("a number");
    assert!(hits >= 1, "it was asked {hits} times");
}

#[test]
fn a_policy_decides_behind_a_tee() {
    let folder = folder("decided", &[("f", "")]);
    let sandbox = Sandbox::up("decided");
    loaded(&sandbox, "libmeddler.so", &["--tee", "--config", "word=decided,answer=0"]);
    loaded(&sandbox, "libthrough.so", &[]);
    let policy = Scratch::new("decided.toml");
    let names =
        "names = [\"mkdir\", \"mkdirat\"]\naction = \"upcall:through.judge\"\nreason = \"r\"\n";
    let text = format!("version = 1\n[[syscall]]\n{names}");
    std::fs::write(&policy.0, text).expect("a scratch file");
    let script = format!("cd {}; mkdir $PWD/forbidden $PWD/allowed; ls", folder.text());
    let run = ["run", "--sandbox", &sandbox.name, "--policy", policy.text()];
    let ended = launcher(&[&run[..], &["--", "/bin/bash", "-c", &script]].concat());
    assert_eq!(ended.stdout, "allowed\nf\n", "{}", ended.stderr);
    let asked = noticed(&sandbox, "forbidden");
    assert!(asked.iter().any(|line| line.starts_with("before mkdir")), "{asked:?}");
    // Whatever goes meanwhile, in a row the policy's handler stays where it is.
    let unloaded = launcher(&["ext", "unload", &sandbox.name, "meddler"]);
    assert_eq!(unloaded.status, 0, "{}", unloaded.stderr);
    let script = format!("cd {}; rmdir allowed; mkdir $PWD/forbidden; ls", folder.text());
    let ended = launcher(&[&run[..], &["--", "/bin/bash", "-c", &script]].concat());
    assert_eq!(ended.stdout, "f\n", "{}", ended.stderr);
}

#[test]
fn a_run_says_which_of_its_extensions_it_means() {
    let folder = folder("run", &[("refused", "here\n")]);
    let [audit, meddler] = ["libaudit.so", "libmeddler.so"].map(built);
    let [audit, meddler] = [&audit, &meddler].map(|path| path.to_str().expect("a UTF-8 path"));
    let file = format!("{}/refused", folder.text());
    let with = |options: &[&str], argv: &[&str]| {
        let run = ["run", "--ext", audit, "--ext", meddler];
        launcher(&[&run[..], options, &["--"], argv].concat())
    };
    let can = |options: &[&str], program: &str| {
        let ended = with(options, &[program, &file]);
        assert!(matches!(ended.status, 0 | 1), "{}", ended.stderr);
        ended.stdout == "here\n"
    };
    assert!(!can(&[], "cat") && !can(&["--tee=audit"], "cat"));
    assert!(can(&["--tee=meddler"], "cat") && can(&["--tee"], "cat"));
    let other = ["--clamp", "meddler:process=head"];
    assert!(can(&other, "cat") && !can(&other, "head"));
    assert!(!can(&["--clamp", "audit:process=head"], "cat"));
    assert!(can(&["--clamp", "process=head", "--clamp", "meddler:path=/"], "cat"));
    for (options, why) in [
        (
            &["--clamp", "adit:path=/x"][..],
            "--clamp adit:path=/x: no extension named adit is loaded",
        ),
        (&["--tee=adit"], "--tee=adit: no extension named adit is loaded"),
        (&["--clamp", "path=x"], "\"path=x\": the path has to begin with /"),
        (&["--clamp", "fd=3-1"], "3-1 ends before it begins"),
        (&["--clamp", "user=root"], "there is no kind \"user\"; expected [EXTENSION:]path=FOLDER"),
    ] {
        let ended = with(options, &["true"]);
        assert!(ended.status != 0 && ended.stderr.contains(why), "{options:?}: {}", ended.stderr);
    }
}

#[test]
fn what_cannot_be_narrowed_is_said() {
    for narrowed in [&["--clamp", "path=/srv"][..], &["--tee"]] {
        let ended = launcher(&[&["run"][..], narrowed, &["--", "/bin/true"]].concat());
        assert!(ended.status == 125 && ended.stderr.contains("--ext FILE"), "{}", ended.stderr);
    }
    let sandbox = Sandbox::up("narrow-none");
    for options in [&["--clamp", "path=/srv"][..], &["--tee"]] {
        let ended = load(&sandbox, "libhello_upcall.so", options);
        let why = format!("{}: hello hooks no system calls", options.join(" "));
        assert!(ended.status == 125 && ended.stderr.contains(&why), "{}", ended.stderr);
    }
    let ended = load(&sandbox, "libredirect.so", &["--clamp", "audit:path=/srv"]);
    assert!(ended.stderr.contains("no extension named audit is loaded"), "{}", ended.stderr);
    let many: Vec<String> = (1..18).map(|pid| format!("process={pid}")).collect();
    let many: Vec<&str> = many.iter().flat_map(|one| ["--clamp", one]).collect();
    let ended = load(&sandbox, "libaudit.so", &many);
    assert!(ended.stderr.contains("process=17: that is one too many"), "{}", ended.stderr);
    // Nothing is left of them, and what fails takes no clamp away.
    for _ in 0..40 {
        let ended = load(&sandbox, "libredirect.so", &["--clamp", "path=/srv"]);
        assert!(ended.stderr.contains("from=/one/folder"), "{}", ended.stderr);
    }
    loaded(&sandbox, "libaudit.so", &["--clamp", "audit:path=/srv", "--tee"]);
    let policy = Scratch::new("narrowed.toml");
    let rule = "version = 1\n[[syscall]]\nnames = [\"mkdir\"]\naction = \"upcall:audit.touched\"\nreason = \"r\"\n";
    std::fs::write(&policy.0, rule).expect("a scratch file");
    let run = ["run", "--sandbox", &sandbox.name, "--policy", policy.text(), "--", "/bin/true"];
    let ended = launcher(&run);
    assert!(ended.stderr.contains("cannot have --clamp or --tee"), "{}", ended.stderr);
}

/// Is the extension asked about one of two folders, and not of the other?
fn is_clamped(sandbox: &Sandbox, folder: &Scratch) {
    let script = format!("cd {}; cat in/meddled out/meddled", folder.text());
    let ended = sh(sandbox, &script);
    assert_eq!(ended.stdout, "out", "{}", ended.stderr);
    assert!(ended.stderr.contains("in/meddled: Permission denied"), "{}", ended.stderr);
}

#[test]
fn clamps_outlive_versions_faults_supervisors_and_sandboxes() {
    let folder = folder(
        "lives",
        &[("in/meddled", "in"), ("out/meddled", "out"), ("in/meddled-faults", "x")],
    );
    let sandbox = Sandbox::up("lives");
    let clamp = format!("path={}/in", folder.text());
    let options =
        ["--config", "word=/meddled,refuse=true", "--clamp", &clamp, "--clamp", "process=cat"];
    loaded(&sandbox, "libmeddler.so", &options);
    is_clamped(&sandbox, &folder);
    let image = built("libmeddler.so");
    let image = image.to_str().expect("a UTF-8 path");
    let ended = launcher(&["ext", "upgrade", &sandbox.name, image]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    is_clamped(&sandbox, &folder);
    // A handler that faults lets the call through; the next copy of its extension is clamped as it was.
    let ended = sh(&sandbox, &format!("cat {}/in/meddled-faults", folder.text()));
    assert_eq!((ended.stdout.as_str(), ended.status), ("x", 0), "{}", ended.stderr);
    let row = || sandbox.json(&["ext", "ls"])["extensions"][0].clone();
    until(|| row()["state"] == "live" && row()["restarts"] == 1);
    is_clamped(&sandbox, &folder);
    let [supervisor, keeper] = ["supervisor", "keeper"].map(|who| {
        until(|| sandbox.json(&["ps"])[who].is_i64());
        sandbox.json(&["ps"])[who].as_i64().expect("a pid")
    });
    kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).expect("it is there");
    until(|| sandbox.json(&["ps"])["supervisor"] == keeper);
    is_clamped(&sandbox, &folder);
    assert_eq!(row()["clamps"], serde_json::json!([clamp, "process=cat"]));
    // Another one gets another clamp.
    loaded(&sandbox, "libfaults.so", &["--config", "rules=openat:*:EIO", "--clamp", "path=/none"]);
    is_clamped(&sandbox, &folder);
    let file = Scratch::new("clamped.snapshot");
    let ended = launcher(&["snapshot", &sandbox.name, file.text()]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    drop(sandbox);
    let restored = Sandbox::up_with("lives-again", &["--restore", file.text()]);
    is_clamped(&restored, &folder);
    // What is unloaded gives its clamp back, and who gets it next has his own.
    assert_eq!(launcher(&["ext", "unload", &restored.name, "meddler"]).status, 0);
    let clamp = format!("path={}/out", folder.text());
    loaded(&restored, "libmeddler.so", &["--config", "refuse=true", "--clamp", &clamp]);
    let ended = sh(&restored, &format!("cd {}; cat in/meddled out/meddled", folder.text()));
    assert_eq!(ended.stdout, "in", "{}", ended.stderr);
}

fn until(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(10), "it does not come to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}
