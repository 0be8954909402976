//! Executes programs of the OmChat IR on CubeCL devices: buffers, launches, sessions.
