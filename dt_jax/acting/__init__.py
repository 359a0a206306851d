# SPDX-License-Identifier: Apache-2.0
"""A trained model in an environment: observations in, actions and episodes out."""
