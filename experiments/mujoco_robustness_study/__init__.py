"""Parts of the robustness study on a MuJoCo task."""
