//! The command `sbx-launcher`: see [`sbx_launcher::cli`].

fn main() {
    let status = match sbx_launcher::cli::parse() {
        Ok(cli) => sbx_launcher::cli::main(cli),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { sbx_launcher::run::LAUNCHER_FAILED } else { 0 }
        }
    };
    std::process::exit(status);
}
