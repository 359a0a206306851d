# SPDX-License-Identifier: Apache-2.0
"""What a user can do, one file each; the only readers of the config."""
