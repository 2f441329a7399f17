# SPDX-License-Identifier: Apache-2.0
"""Time, memory and bytes against stock MMSegmentation and PEFT."""
