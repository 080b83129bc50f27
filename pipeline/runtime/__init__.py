"""Progress bars, signals and checks of the installation."""
